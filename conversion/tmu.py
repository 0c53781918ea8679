"""The authors' released scorer (`config.json` + `model.pt`) -> a transformers folder."""

import json
import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from xacle.configuration_xacle import BeatsConfig, XacleConfig
from xacle.conversion.beats import read_beats, rename_beats_tensors
from xacle.conversion.lora import merge_lora
from xacle.core.loading import is_hub_id
from xacle.core.provenance import TMU, TMU_LICENSE, license_on_card, sources_of, weight_source
from xacle.core.state_dicts import check_tensors, model_from_tensors, read_checkpoint, use_umask
from xacle.core.tables import check_output_folder
from xacle.modeling_beats import BeatsModel
from xacle.modeling_xacle import XacleForAlignmentScoring
from xacle.processing_xacle import XacleFeatureExtractor, XacleProcessor

logger = logging.get_logger(__name__)

# The release's three tokens, in the order it adds them, and the placeholder it does not have.
TOKENS = {
    "audio_start_token": "[AUDIO_START]",
    "audio_end_token": "[AUDIO_END]",
    "score_token": "[SCORE]",
    "audio_token": "[AUDIO]",
}

# Any released naming, after its leading "model." prefixes, -> ours.
RENAMES = [
    (r"^llm_wrapper\.(audio_adapter\.)?audio_encoder\.model\.", "model.audio_tower."),
    (r"^llm_wrapper\.(audio_projection|audio_adapter)\.mlp\.", "model.multi_modal_projector.blocks.0."),
    (r"^llm_wrapper\.(audio_projection|audio_adapter)\.residual_", "model.multi_modal_projector.blocks.0.residual_"),
    (r"^llm_wrapper\.llm\.", "model.language_model."),
    (r"^(score_head|projection)\.mlp\.0\.", "score_head.hidden_layers.0."),
    (r"^(score_head|projection)\.mlp\.3\.", "score_head.hidden_layers.1."),
    (r"^(score_head|projection)\.mlp\.6\.", "score_head.hidden_layers.2."),
    (r"^(final_linear\.linear|projection)\.(weight|bias)$", r"score_head.out_proj.\2"),
]

MODEL_CARD = """---
license: {license}
library_name: transformers
pipeline_tag: audio-classification
tags: [audio, text-to-audio, xacle, custom_code]
---
# XACLE scorer, converted from the authors' format

Scores how well a sound matches a caption (0-10). Converted without change from `{source}`, a checkpoint in the format of the
TMU system for the XACLE Challenge (arXiv 2602.00604). If these are the weights its authors published ([{published}](
https://huggingface.co/{published})), they are under CC-BY-NC-4.0: no commercial use.

```python
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained("path/to/this/folder", trust_remote_code=True)
model = AutoModel.from_pretrained("path/to/this/folder", trust_remote_code=True)
inputs = processor(audio="dog.wav", text="A dog barks")
print(model(**inputs).scores)
```
"""


def state_dict_of(checkpoint: dict, source: str) -> dict[str, torch.Tensor]:
    """The weights in any of the released forms: bare, `{"state_dict"}` or `{"model_state_dict"}`, with `model.` prefixes."""
    checkpoint = checkpoint.get("state_dict", checkpoint.get("model_state_dict", checkpoint))
    check_tensors(checkpoint, source)
    tensors = {}
    for name, tensor in checkpoint.items():
        bare_name = re.sub(r"^(model\.)+", "", name)
        if bare_name in tensors:
            raise ValueError(f"'{source}' holds two tensors for {bare_name}, one of them {name}")
        tensors[bare_name] = tensor
    return tensors


def rename_tmu_tensors(tensors: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """The release's names -> those of `XacleForAlignmentScoring`. The classifier of a fine-tuned BEATs is left out."""
    renamed, encoder = {}, {}
    for name, tensor in tensors.items():
        for pattern, replacement in RENAMES:
            name, found = re.subn(pattern, replacement, name)
            if found:
                break
        if not name.startswith("model.audio_tower."):
            if name in renamed:
                raise ValueError(f"'{source}' holds two tensors for {name}")
            renamed[name] = tensor
        elif ".predictor." not in name:
            encoder[name.removeprefix("model.audio_tower.")] = tensor
        else:
            logger.info(f"left out {name}: the classifier of a fine-tuned BEATs, which the scorer never calls")
    encoder = rename_beats_tensors(encoder, source)
    return {**{f"model.audio_tower.{name}": tensor for name, tensor in encoder.items()}, **renamed}


def audio_config_from(tensors: dict[str, torch.Tensor], source: str) -> BeatsConfig:
    """Read the encoder's sizes off its tensors. The rest (distances, activations, DeepNorm) is the same in every release."""
    prefix = "model.audio_tower."
    shape = {name.removeprefix(prefix): tensor.shape for name, tensor in tensors.items() if name.startswith(prefix)}
    needed = (
        "embeddings.patch_embedding.weight",
        "encoder.pos_conv_embed.direction",
        "encoder.relative_attention_bias.weight",
        "encoder.layers.0.attention.gru_rel_pos_const",
        "encoder.layers.0.fc1.weight",
    )
    if missing := [prefix + name for name in needed if name not in shape]:
        raise ValueError(f"'{source}' is no checkpoint of the TMU scorer; missing: {', '.join(missing)}")
    layers = {int(match[1]) for name in shape if (match := re.match(r"encoder\.layers\.(\d+)\.", name))}
    direction = shape["encoder.pos_conv_embed.direction"]
    patch = shape["embeddings.patch_embedding.weight"]
    return BeatsConfig(
        hidden_size=direction[0],
        num_hidden_layers=max(layers) + 1,
        num_attention_heads=shape["encoder.layers.0.attention.gru_rel_pos_const"][1],
        intermediate_size=shape["encoder.layers.0.fc1.weight"][0],
        patch_size=patch[2],
        patch_embed_dim=patch[0],
        conv_bias="embeddings.patch_embedding.bias" in shape,
        num_conv_pos_embeddings=direction[2],
        num_conv_pos_embedding_groups=direction[0] // direction[1],
        num_buckets=shape["encoder.relative_attention_bias.weight"][0],
    )


def convert_tmu(
    source: str | Path,
    output: str | Path,
    llm: str | None = None,
    beats: str | Path | None = None,
    lora_alpha: float | None = None,
) -> Path:
    """Convert the authors' checkpoint to a folder that `AutoModel.from_pretrained` loads.

    Args:
        source: Folder or Hub repository with `config.json` and `model.pt`, or one checkpoint file (then `llm` is needed).
        output: New folder: safetensors, processor and the model's code.
        llm: Folder or Hub id of the language model; its config and tokenizer are read, not its weights. By default what
            the release's `config.json` names.
        beats: For a checkpoint that was saved without its frozen encoder: Microsoft's BEATs file, or a converted folder.
        lora_alpha: For a checkpoint with LoRA adapters that were not merged, see [`merge_lora`]; by default what its
            `config.json` says, as `lora_alpha` or in a `lora_config`.

    Raises:
        FileNotFoundError, FileExistsError: for a missing file or an output folder in use.
        ValueError: if the checkpoint does not match the release's architecture exactly; the message names the tensors.
    """
    output = check_output_folder(output)
    folder, file = _find_checkpoint(source)
    settings = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
    llm = llm or settings.get("llm_model_name")
    if not llm:
        raise ValueError(f"'{source}' does not name its language model; pass --llm, e.g. Qwen/Qwen2.5-0.5B-Instruct")
    llm = str(folder / llm) if (folder / llm).is_dir() else llm

    tokenizer = AutoTokenizer.from_pretrained(llm)
    plain_size = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": list(TOKENS.values())}, replace_extra_special_tokens=False)
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.items()}

    if lora_alpha is None:
        lora_alpha = settings.get("lora_alpha", (settings.get("lora_config") or {}).get("lora_alpha"))
    tensors = merge_lora(state_dict_of(read_checkpoint(file), str(file)), lora_alpha, str(file))
    tensors = rename_tmu_tensors(tensors, str(file))
    embeddings = tensors.get("model.language_model.embed_tokens.weight")
    if embeddings is None:
        raise ValueError(
            f"'{file}' is no checkpoint of the TMU scorer; missing: model.language_model.embed_tokens.weight "
            f"(its tensors begin with {', '.join(sorted(tensors)[:5])})"
        )
    if len(embeddings) == plain_size + 3:  # resized to the release's tokens: one more row for the placeholder
        embeddings = torch.cat([embeddings, embeddings.new_zeros(1, embeddings.shape[1])])
        tensors["model.language_model.embed_tokens.weight"] = embeddings
    elif len(embeddings) < len(tokenizer):
        raise ValueError(
            f"'{file}' embeds {len(embeddings)} tokens, but the tokenizer of '{llm}' has {plain_size} and the scorer adds 3: "
            "is this the right language model?"
        )

    sources = [_source_of(source, folder)]
    audio_config, encoder = _encoder_of(beats, tensors, str(file))
    tensors |= encoder
    if beats is not None:
        sources += sources_of(audio_config.to_dict(), "audio encoder", beats)

    text_config = AutoConfig.from_pretrained(llm)
    text_config.vocab_size = len(embeddings)
    text_config.dtype = embeddings.dtype
    text_config.name_or_path = ""  # perhaps a folder of this machine, which would be published
    head_sizes = [
        len(tensors[name]) for name in sorted(tensors) if re.fullmatch(r"score_head\.hidden_layers\.\d\.weight", name)
    ]
    fc1 = tensors.get("model.multi_modal_projector.blocks.0.fc1.weight")
    config = XacleConfig(
        audio_config=audio_config,
        text_config=text_config,
        num_audio_tokens=settings.get("num_audio_tokens", 100),
        projector_intermediate_size=3584 if fc1 is None else len(fc1) // 2,
        projector_gated_residual="model.multi_modal_projector.blocks.0.residual_gate.weight" in tensors,
        score_head_hidden_sizes=head_sizes,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        weight_sources=sources,
        **ids,
    )
    model = model_from_tensors(XacleForAlignmentScoring, config, tensors, str(file))
    model.save_pretrained(output)
    extractor = XacleFeatureExtractor(resampler="sinc_hann")  # the authors' system uses torchaudio's
    processor = XacleProcessor(extractor, tokenizer, num_audio_tokens=config.num_audio_tokens, **TOKENS)
    processor.save_pretrained(output)
    card = MODEL_CARD.format(
        source=Path(source).name if Path(source).exists() else source,
        license=config.weight_sources[0]["license"] or "unknown",
        published=TMU,
    )
    (output / "README.md").write_text(card)
    use_umask(output)
    return output


def _encoder_of(beats: str | Path | None, tensors: dict, source: str) -> tuple[BeatsConfig, dict[str, torch.Tensor]]:
    """The encoder's configuration, and its tensors if they come from elsewhere than the checkpoint."""
    complete = any(name.startswith("model.audio_tower.") for name in tensors)
    if beats is None and not complete and any(name.startswith("score_head.") for name in tensors):
        raise ValueError(f"'{source}' holds no BEATs weights; pass the encoder it was trained with, --beats FILE_OR_DIR")
    if beats is None:
        return audio_config_from(tensors, source), {}
    if complete:
        raise ValueError(f"'{source}' holds its own BEATs weights: leave out --beats")
    if Path(beats).is_file():
        config, encoder, _ = read_beats(beats)
    else:
        model = BeatsModel.from_pretrained(beats, dtype="float32")
        config, encoder = model.config, model.state_dict()
    return config, {f"model.audio_tower.{name}": tensor for name, tensor in encoder.items()}


def _source_of(checkpoint: str | Path, folder: Path) -> dict:
    """The source of a checkpoint in the authors' format. Of the published one the license is known; others may have a card."""
    if str(checkpoint) == TMU:
        return weight_source("scorer", TMU, TMU_LICENSE)
    known = license_on_card(folder if Path(checkpoint).exists() else checkpoint)
    return weight_source("scorer", f"{Path(checkpoint).name}, a checkpoint in the format of {TMU}", known)


def _find_checkpoint(source: str | Path) -> tuple[Path, Path]:
    """A folder, a checkpoint file or a Hub id -> the folder with `config.json`, and the checkpoint in it."""
    path = Path(source)
    if path.is_file():
        return path.parent, path
    if not path.is_dir():
        if not is_hub_id(source):
            raise FileNotFoundError(f"'{source}' is neither a folder, a file nor a Hub id")
        path = Path(snapshot_download(str(source), allow_patterns=["config.json", "model.pt"]))
    if not (path / "model.pt").is_file():
        raise FileNotFoundError(f"no model.pt in '{path}'; a released folder holds config.json and model.pt")
    return path, path / "model.pt"
