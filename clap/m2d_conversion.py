"""NTT's M2D-CLAP checkpoints (`checkpoint-*.pth`) -> a transformers folder.

Written from published facts about the files, not from the authors' code. The facts leave two things open, assumed here: a ViT's
heads are 64 wide; the projection's tensors are those that belong to no other part, recognized by how their names end (see
[`name_projection_tensors`]). A file that breaks an assumption is refused with an error that names its tensors.
"""

import argparse
import math
import re
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging

from xacle.clap.m2d_configuration import M2dClapAudioConfig, M2dClapConfig
from xacle.clap.m2d_modeling import LICENSE_NOTICE, M2dClapModel
from xacle.clap.m2d_processing import M2dClapFeatureExtractor, M2dClapProcessor
from xacle.core.provenance import NTT_EVALUATION, weight_source
from xacle.core.state_dicts import check_tensors, model_from_tensors, read_checkpoint, use_umask
from xacle.core.tables import check_output_folder

logger = logging.get_logger(__name__)

# E.g. m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025: mel bins x frames, patch height x width, kHz, text encoder, and TI where
# that was trained and its weights are in the file. In 2024 there was one rate and one text encoder, so names omit them.
NAME = re.compile(
    r"(?P<model>m2d_clap_vit_\w+)-(?P<mel_bins>\d+)x(?P<frames>\d+)p(?P<height>\d+)x(?P<width>\d+)"
    r"(?:p(?P<khz>\d+)k)?(?:p(?P<text>[A-Z]))?(?P<has_text>pTI)?(?:-(?P<version>.+))?"
)
# Letter in the name -> Hub id and pooling. (N, NV-Embed-v2, is another architecture.)
TEXT_ENCODERS = {"A": ("thenlper/gte-base", "mean"), "B": ("google-bert/bert-base-uncased", "cls")}
HEAD_WIDTH = 64
# Mean and standard deviation of the log-mel input, for files without norm_stats.
NORM_STATS = {
    "m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025": (-7.261779308319092, 4.3511505126953125),
    "m2d_clap_vit_base-80x608p16x16-240128": (-7.1, 4.2),
}

WRAPPERS = re.compile(r"^(module\.ar\.runtime\.)?backbone\.")
# What only pre-training needs: the decoder of masked patches, and the target network.
PRETRAINING = ("decoder_", "mask_token", "predictor.", "target_")
# Not read by M2D-CLAP: BERT's pooler, and a buffer that older transformers stored.
UNUSED_TEXT = ("pooler.", "embeddings.position_ids")

VIT_RENAMES = [
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
    (r"^norm\.", "layer_norm."),
    (r"^blocks\.", "layers."),
]
# In a Transformer block, of the ViT and of the projection.
BLOCK_RENAMES = [(r"\.attn\.", ".attention."), (r"\.mlp\.", ".")]
PROJECTION_BLOCK = re.compile(
    r"(?:(?:^|\.)(?P<index>\d+)\.)?(?P<part>norm1|attn\.qkv|attn\.proj|norm2|mlp\.fc1|mlp\.fc2)\.(?P<kind>weight|bias)$"
)


def rename(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def parse_name(name: str) -> re.Match:
    """A checkpoint's name -> its parts. Raises `ValueError` if it is none, or of a variant that is not supported."""
    parts = NAME.fullmatch(name)
    if parts is None:
        raise ValueError(
            f"'{name}' is no name of an M2D-CLAP checkpoint, from which its architecture is read: keep the file in the folder "
            "it was released in, or pass the folder's name, e.g. name='m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025'"
        )
    if (parts["text"] or "A") not in TEXT_ENCODERS:
        raise ValueError(f"'{name}' has the text encoder {parts['text']}, but only {sorted(TEXT_ENCODERS)} are supported")
    if parts["khz"] not in (None, "16"):
        raise ValueError(f"'{name}' is a model of {parts['khz']} kHz, but only 16 kHz is supported")
    return parts


def read_tensors(file: str | Path) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors, without wrappers around the file or its names, and without those of pre-training."""
    # Training scripts in the style of MAE store their arguments too: a plain container, which runs no code.
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = read_checkpoint(file)
    tensors = checkpoint.get("model", checkpoint)
    check_tensors(tensors, str(file))
    unwrapped = {}
    for name, tensor in tensors.items():
        new_name = WRAPPERS.sub("", str(name))
        if new_name in unwrapped:
            raise ValueError(f"'{file}' holds two tensors for {new_name}, one of them {name}")
        unwrapped[new_name] = tensor.float()
    if dropped := [name for name in unwrapped if name.startswith(PRETRAINING)]:
        kinds = [f"{prefix}*" for prefix in PRETRAINING if any(name.startswith(prefix) for name in dropped)]
        logger.warning(f"'{file}': {len(dropped)} tensors that only pre-training needs are left out: {', '.join(kinds)}")
    return {name: tensor for name, tensor in unwrapped.items() if name not in dropped}


def name_projection_tensors(tensors: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """The tensors that belong to no other part -> the projection's.

    2025: `*sem_token`; the parts of timm's Transformer block (`*norm1.weight` ... `*mlp.fc2.bias`), with the block's number
    before them if there are several; and the LayerNorm after them, `*norm*.weight` and `.bias`. 2024: the weights and
    biases of two linear layers which share a name up to a number, e.g. `*.0.weight` and `*.2.weight`.

    Raises:
        ValueError: naming the tensors that are none of these, or all that there are.
    """
    named = {}
    if any(name.endswith("sem_token") for name in tensors):
        for name in tensors:
            if name.endswith("sem_token"):
                named[name] = "semantic_token"
            elif match := PROJECTION_BLOCK.search(name):
                named[name] = rename(f"blocks.{match['index'] or 0}.{match['part']}.{match['kind']}", BLOCK_RENAMES)
            elif match := re.search(r"norm[^.]*\.(weight|bias)$", name):
                named[name] = f"layer_norm.{match[1]}"
    else:
        linears = {name: match for name in tensors if (match := re.search(r"^(.*?)(\d+)\.(weight|bias)$", name))}
        numbers = sorted({int(match[2]) for match in linears.values()})
        if len({match[1] for match in linears.values()}) == 1 and len(numbers) == 2:
            named = {name: f"linear_{numbers.index(int(m[2])) + 1}.{m[3]}" for name, m in linears.items()}
    if not named:
        raise ValueError(
            f"'{source}' has no projection into the space of texts (an encoder without CLAP, such as a fine-tuned tagger?); "
            f"beyond the encoder it holds {sorted(tensors) or 'nothing'}"
        )
    if unknown := sorted(tensors.keys() - named.keys()):
        raise ValueError(f"'{source}' holds tensors that no part of M2D-CLAP has: {', '.join(unknown)}")
    if len(set(named.values())) < len(named):
        raise ValueError(f"'{source}' holds several tensors for the same part of the projection: {', '.join(sorted(named))}")
    return {new_name: tensors[name] for name, new_name in named.items()}


def sort_tensors(tensors: dict[str, torch.Tensor], source: str) -> dict[str, dict[str, torch.Tensor]]:
    """A checkpoint's tensors -> those of its `audio`, `projection` and `text` parts, by our names, and the `scalars`.

    Raises:
        ValueError: naming the tensors, if a part is missing or some belong to none.
    """
    audio, text, scalars, rest = {}, {}, {}, {}
    for name, tensor in tensors.items():
        ours = rename(name, VIT_RENAMES)
        if ours != name:
            audio[rename(ours, BLOCK_RENAMES)] = tensor
        elif match := re.match(r"text_encoder\.(?:text_encoder\.)?(.+)", name):
            if match[1] in text:
                raise ValueError(f"'{source}' holds two tensors for the text encoder's {match[1]}, one of them {name}")
            if not match[1].startswith(UNUSED_TEXT):
                text[match[1]] = tensor
        elif (name, tensor.numel()) in (("norm_stats", 2), ("logit_scale", 1)):
            scalars[name] = tensor
        else:
            rest[name] = tensor
    patches = audio.get("embeddings.patch_embeddings.weight")
    if patches is None or patches.ndim != 4:
        raise ValueError(f"'{source}' is no M2D checkpoint: it lacks patch_embed.proj.weight and has {sorted(tensors)[:5]}")
    return {"audio": audio, "projection": name_projection_tensors(rest, source), "text": text, "scalars": scalars}


def audio_config_from(audio: dict, projection: dict, name: re.Match) -> M2dClapAudioConfig:
    """Sizes of the input and the patches come from the name, widths and depths from the tensors."""
    hidden_size = len(audio["embeddings.patch_embeddings.weight"])

    def depth(pattern: str, tensors: dict) -> int:
        return 1 + max((int(match[1]) for match in map(re.compile(pattern).match, tensors) if match), default=0)

    def mlp_ratio(fc1: torch.Tensor | None, default: int) -> float:
        return default if fc1 is None else len(fc1) / hidden_size

    return M2dClapAudioConfig(
        hidden_size=hidden_size,
        num_hidden_layers=depth(r"layers\.(\d+)\.", audio),
        num_attention_heads=max(1, hidden_size // HEAD_WIDTH),
        mlp_ratio=mlp_ratio(audio.get("layers.0.fc1.weight"), 4),
        num_mel_bins=int(name["mel_bins"]),
        input_frames=int(name["frames"]),
        patch_height=int(name["height"]),
        patch_width=int(name["width"]),
        projection_type="semantic_token" if "semantic_token" in projection else "mlp",
        projection_num_layers=depth(r"blocks\.(\d+)\.", projection),
        projection_mlp_ratio=mlp_ratio(projection.get("blocks.0.fc1.weight"), 1),
    )


def convert_m2d_clap(
    file: str | Path, output: str | Path, text_encoder: str | Path | None = None, name: str | None = None
) -> Path:
    """Convert an M2D-CLAP `.pth` file to a transformers folder, and print the license that still covers its weights.

    Args:
        file: E.g. `m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025/checkpoint-30.pth`. The folder's name holds the architecture.
        output: New folder: `M2dClapModel`, `M2dClapProcessor` and the license notice.
        text_encoder: Folder or Hub id of the text encoder's configuration and tokenizer, and of its weights where the file
            has none (2024). By default the one in the name: BERT base (2025) or GTE base (2024).
        name: The name of the released folder, if the file is no longer in it.

    Raises:
        FileNotFoundError, FileExistsError: for a missing file or an output folder in use.
        ValueError: if the file is no M2D-CLAP checkpoint, or does not fit its name exactly; the message names the tensors.
    """
    output = check_output_folder(output)
    source = str(file)
    parts = sort_tensors(read_tensors(file), source)
    checkpoint_name = name or Path(file).resolve().parent.name
    architecture = parse_name(checkpoint_name)
    if architecture["has_text"] and not parts["text"]:
        raise ValueError(f"'{source}' lacks the trained text encoder (text_encoder.*) that '{checkpoint_name}' includes")
    norm_stats = parts["scalars"].get("norm_stats", NORM_STATS.get(checkpoint_name))
    if norm_stats is None:
        raise ValueError(f"'{source}' lacks norm_stats, the mean and standard deviation that normalize its input")
    norm_mean, norm_std = torch.as_tensor(norm_stats, dtype=torch.float64).flatten().tolist()

    default_encoder, text_pooling = TEXT_ENCODERS[architecture["text"] or "A"]
    text_encoder = str(text_encoder or default_encoder)
    tokenizer = AutoTokenizer.from_pretrained(text_encoder)
    if not parts["text"]:  # GTE's file is in half precision
        encoder = AutoModel.from_pretrained(text_encoder, add_pooling_layer=False, dtype=torch.float32)
        parts["text"] = encoder.state_dict()
    text_config = AutoConfig.from_pretrained(text_encoder)
    text_config.name_or_path = ""  # perhaps a folder of this machine, which would be published
    try:
        config = M2dClapConfig(
            audio_config=audio_config_from(parts["audio"], parts["projection"], architecture),
            text_config=text_config,
            text_pooling=text_pooling,
            checkpoint_name=checkpoint_name,
        )
    except StrictDataclassError as error:
        raise ValueError(f"'{source}' and '{text_encoder}' make no model named '{checkpoint_name}': {error}") from error
    config.weight_sources = [weight_source("teacher", checkpoint_name, NTT_EVALUATION)]
    logit_scale = parts["scalars"].get("logit_scale", torch.tensor(math.log(config.logit_scale_init_value)))
    tensors = {"logit_scale": logit_scale.reshape(())}
    prefixes = {"audio": "audio_model.", "projection": "audio_model.projection.", "text": "text_model.encoder."}
    for part, prefix in prefixes.items():
        tensors.update({prefix + key: tensor for key, tensor in parts[part].items()})
    model = model_from_tensors(M2dClapModel, config, tensors, source)
    feature_extractor = M2dClapFeatureExtractor(config.audio_config.num_mel_bins, norm_mean=norm_mean, norm_std=norm_std)
    print(LICENSE_NOTICE)
    model.save_pretrained(output)
    M2dClapProcessor(feature_extractor, tokenizer).save_pretrained(output)
    use_umask(output)
    return output
