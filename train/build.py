"""The model a stage trains: loaded, or put together from BEATs and a language model."""

import json
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from xacle.configuration_xacle import XacleConfig
from xacle.core.loading import check_model_folder, quiet_loading
from xacle.core.provenance import merge_sources, sources_of
from xacle.modeling_beats import BeatsModel
from xacle.processing_xacle import XacleFeatureExtractor, XacleProcessor
from xacle.train.arguments import ModelArguments
from xacle.train.lora_and_freezing import check_lora, freeze

logger = logging.get_logger(__name__)

SPECIAL_TOKENS = ("<|AUDIO_START|>", "<|AUDIO_END|>", "<|SCORE|>", "<|AUDIO|>")


def build_model(
    model_class: type[PreTrainedModel], arguments: ModelArguments, **fields
) -> tuple[PreTrainedModel, XacleProcessor]:
    """The model `arguments` ask for, as `model_class`, and its processor. A head that `model_class` adds starts at random.

    Args:
        fields: Of the configuration, to set; `arguments.model_config` wins.

    Raises:
        FileNotFoundError, ValueError: if there is no such model, or it lacks weights other than a new head's.
    """
    fields = {**fields, "freeze_audio_encoder": arguments.freeze_audio_encoder, **_config_fields(arguments.model_config)}
    if arguments.model_name_or_path is None:
        if arguments.audio_encoder is None or arguments.language_model is None:
            raise ValueError(
                "pass --model-name-or-path, or --audio-encoder and --language-model to put a new model together "
                "(BEATs from `xacle convert beats`, Qwen/Qwen2.5-0.5B-Instruct)"
            )
    elif arguments.audio_encoder is not None or arguments.language_model is not None:
        raise ValueError("--audio-encoder and --language-model make a new model: leave out --model-name-or-path or them")
    check_lora(arguments, fields["freeze_audio_encoder"])
    try:
        if arguments.model_name_or_path is None:
            model, processor = assemble(model_class, arguments.audio_encoder, arguments.language_model, **fields)
        else:
            model, processor = _load(model_class, arguments.model_name_or_path, fields)
    except StrictDataclassError as error:
        raise ValueError(f"--model-config: {error}") from error
    freeze(model, arguments)
    return model, processor


def _config_fields(given: str | dict | None) -> dict:
    try:
        fields = json.loads(given) if isinstance(given, str) else given or {}
    except json.JSONDecodeError as error:
        raise ValueError(f"--model-config must be JSON such as '{{\"projector_depth\": 2}}': {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"--model-config must be a JSON object, got {given}")
    if unknown := fields.keys() - XacleConfig().to_dict().keys():
        raise ValueError(f"--model-config: XacleConfig has no field {', '.join(sorted(unknown))}")
    if parts := fields.keys() & XacleConfig.sub_configs.keys():
        raise ValueError(f"--model-config: {', '.join(sorted(parts))} come with the audio encoder and the language model")
    return fields


def _load(model_class, name: str, fields: dict) -> tuple[PreTrainedModel, XacleProcessor]:
    check_model_folder(name)
    config = XacleConfig.from_pretrained(name)
    fields = {"weight_sources": sources_of(config.to_dict(), "scorer", name), **fields}
    config = XacleConfig.from_dict({**config.to_dict(), **fields})
    with quiet_loading():  # missing weights are reported below
        model, loaded = model_class.from_pretrained(name, config=config, dtype="float32", output_loading_info=True)
    if missing := [key for key in sorted(loaded["missing_keys"]) if not key.startswith(("score_head.", "lm_head."))]:
        raise ValueError(f"'{name}' lacks {', '.join(missing)}")
    if loaded["missing_keys"]:
        logger.info(f"a new head: {', '.join(sorted(loaded['missing_keys']))}")
    return model, XacleProcessor.from_pretrained(name)


def assemble(
    model_class: type[PreTrainedModel], audio_encoder: str, language_model: str, **fields
) -> tuple[PreTrainedModel, XacleProcessor]:
    """A new model around a BEATs encoder and a language model; projector and head start at random.

    Args:
        audio_encoder: Folder or Hub id of a [`BeatsModel`], with or without a classifier.
        language_model: Folder or Hub id of a decoder with its tokenizer. A captioner gets its output head too. Rows start
            with a BOS if the tokenizer puts one there; without a padding token, EOS pads.
        fields: Of the configuration, other than the parts' own.

    Raises:
        ValueError: for a part that cannot be loaded, or a decoder that cannot be used.
    """
    if Path(audio_encoder).is_file():
        raise ValueError(f"'{audio_encoder}' is a file: convert it first, `xacle convert beats {audio_encoder} beats`")
    with quiet_loading(), _named(audio_encoder):
        encoder, loaded = BeatsModel.from_pretrained(audio_encoder, dtype="float32", output_loading_info=True)
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"'{audio_encoder}' is no BEATs encoder, it lacks {', '.join(missing[:5])}")
    decoder, tokenizer = _load_decoder(language_model)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(decoder.config, name, getattr(tokenizer, name))
    text_config = AutoConfig.for_model(**decoder.config.to_dict())
    for part in (encoder.config, text_config):
        part.name_or_path = ""  # perhaps a folder of this machine, which would be published
    processor = XacleProcessor(
        XacleFeatureExtractor(),
        tokenizer,
        num_audio_tokens=fields.get("num_audio_tokens", XacleConfig.num_audio_tokens),
        prepend_bos=starts_with_bos(tokenizer),
    )
    config = XacleConfig(
        audio_config=encoder.config,
        text_config=text_config,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        weight_sources=merge_sources(
            sources_of(encoder.config.to_dict(), "audio encoder", audio_encoder),
            sources_of(decoder.config.to_dict(), "language model", language_model),
        ),
        **{name: getattr(processor, name) for name in XacleConfig.special_token_names},
        **fields,
    )
    model = model_class(config)
    model.base_model.audio_tower.load_state_dict(encoder.state_dict())
    model.base_model.language_model.load_state_dict(decoder.base_model.state_dict())
    if hasattr(model, "lm_head") and not config.tie_word_embeddings:
        model.lm_head.load_state_dict(decoder.get_output_embeddings().state_dict())
    return model, processor


def _load_decoder(name: str):
    """A causal language model with its output head, with room for the special tokens, and its tokenizer, which knows them."""
    with quiet_loading(), _named(name):
        decoder, loaded = AutoModelForCausalLM.from_pretrained(
            name, dtype="float32", trust_remote_code=False, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"'{name}' is no causal language model, it lacks {', '.join(missing[:5])}")
    if getattr(decoder.get_output_embeddings(), "bias", None) is not None:
        raise ValueError(f"the output head of '{name}' has a bias, for which a captioner has no place: choose another decoder")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of '{name}' has no eos_token to end captions with: set one and save it")
    if tokenizer.pad_token_id is None:  # as Llama's; padding is never looked at, so that any token does
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)}, replace_extra_special_tokens=False)
    if len(tokenizer) > decoder.config.vocab_size:  # Qwen's table has rows to spare
        decoder.resize_token_embeddings(len(tokenizer))
    return decoder, tokenizer


def starts_with_bos(tokenizer) -> bool:
    """Whether the tokenizer puts a BOS token in front of a text by itself, as the language model was trained to expect."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


@contextmanager
def _named(name: str):
    """Name the model that cannot be loaded."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"'{name}' cannot be loaded: {str(error).splitlines()[0]}") from error
