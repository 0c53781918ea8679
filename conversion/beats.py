"""Microsoft's BEATs checkpoints (`{"cfg": ..., "model": ...}`) -> a transformers folder."""

import re
from pathlib import Path

import torch
from transformers.activations import ACT2FN

from xacle.configuration_xacle import BeatsConfig
from xacle.core.provenance import weight_source
from xacle.core.state_dicts import check_tensors, model_from_tensors, read_checkpoint, use_umask
from xacle.core.tables import check_output_folder
from xacle.modeling_beats import BeatsForAudioClassification, BeatsModel
from xacle.processing_xacle import XacleFeatureExtractor

BEATS_LICENSE = "mit"  # of github.com/microsoft/unilm, which the weights were released with

# Microsoft's names -> ours. Newer PyTorch (and SpeechBrain >= 1.1) stores the weight norm as a parametrization.
RENAMES = [
    (r"^patch_embedding\.", "embeddings.patch_embedding."),
    (r"^layer_norm\.", "embeddings.layer_norm."),
    (r"^post_extract_proj\.", "embeddings.projection."),
    (r"^encoder\.pos_conv\.0\.(weight_g|parametrizations\.weight\.original0)$", "encoder.pos_conv_embed.magnitude"),
    (r"^encoder\.pos_conv\.0\.(weight_v|parametrizations\.weight\.original1)$", "encoder.pos_conv_embed.direction"),
    (r"^encoder\.pos_conv\.0\.bias$", "encoder.pos_conv_embed.bias"),
    (r"\.self_attn_layer_norm\.", ".attention_layer_norm."),
    (r"\.self_attn\.grep_linear\.", ".attention.gru_rel_pos_linear."),
    (r"\.self_attn\.grep_a$", ".attention.gru_rel_pos_const"),
    (r"\.self_attn\.", ".attention."),
]
BIAS_TABLE = re.compile(r"^encoder\.layers\.\d+\.self_attn\.relative_attention_bias\.weight$")

# cfg -> BeatsConfig. What is missing here must have the value below: nothing else was ever released.
CONFIG_NAMES = {
    "encoder_layers": "num_hidden_layers",
    "encoder_embed_dim": "hidden_size",
    "encoder_ffn_embed_dim": "intermediate_size",
    "encoder_attention_heads": "num_attention_heads",
    "activation_fn": "hidden_act",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "encoder_layerdrop": "layerdrop",
    "dropout_input": "input_dropout",
    "conv_bias": "conv_bias",
    "conv_pos": "num_conv_pos_embeddings",
    "conv_pos_groups": "num_conv_pos_embedding_groups",
    "num_buckets": "num_buckets",
    "max_distance": "max_bucket_distance",
    "deep_norm": "deep_norm",
    "input_patch_size": "patch_size",
    "embed_dim": "patch_embed_dim",
    "predictor_dropout": "classifier_dropout",
}
FIXED = {"layer_norm_first": False, "relative_position_embedding": True, "gru_rel_pos": True}


def rename_beats_tensors(tensors: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """Microsoft's state dict, without `predictor.*` -> `BeatsModel`'s.

    The relative position table, which all layers share, may be in the first layer only or repeated in every one.

    Raises:
        ValueError: if two tensors claim one name or the repeated tables differ.
    """
    renamed, tables = {}, {}
    for name, tensor in tensors.items():
        if BIAS_TABLE.match(name):
            tables[name] = tensor
            continue
        new_name = name
        for pattern, replacement in RENAMES:
            new_name = re.sub(pattern, replacement, new_name)
        if new_name in renamed:
            raise ValueError(f"'{source}' holds two tensors for {new_name}, one of them {name}")
        renamed[new_name] = tensor
    if tables:
        first = next(iter(tables.values()))
        if different := [name for name, table in tables.items() if not torch.equal(table, first)]:
            raise ValueError(f"'{source}' holds relative position tables that differ, but the layers share one: {different}")
        renamed["encoder.relative_attention_bias.weight"] = first
    return renamed


def config_from_cfg(cfg: dict, source: str) -> BeatsConfig:
    """Microsoft's `cfg` -> `BeatsConfig`. Raises `ValueError` for variants that were never released."""
    if wrong := {name: cfg[name] for name, value in FIXED.items() if cfg.get(name, value) != value}:
        raise ValueError(f"'{source}' is a BEATs variant that is not supported: {wrong}, expected {FIXED}")
    if cfg.get("activation_fn", "gelu") not in ACT2FN:
        raise ValueError(f"'{source}' has an activation that is not supported: {cfg['activation_fn']}")
    return BeatsConfig(**{ours: cfg[theirs] for theirs, ours in CONFIG_NAMES.items() if theirs in cfg})


def convert_beats(file: str | Path, output: str | Path) -> Path:
    """Convert a BEATs `.pt` file, pre-trained or fine-tuned (then with its classes), to a transformers folder.

    Args:
        file: E.g. `BEATs_iter3_plus_AS2M.pt` or `BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt`.
        output: New folder: `BeatsModel`, or `BeatsForAudioClassification` if the file has a predictor, and the feature
            extractor.

    Raises:
        FileNotFoundError, FileExistsError: for a missing file or an output folder in use.
        ValueError: if the file is no BEATs checkpoint or does not match its own `cfg` exactly; the message names the tensors.
    """
    output = check_output_folder(output)
    config, tensors, classifier = read_beats(file)
    if classifier:
        tensors = {f"beats.{name}": tensor for name, tensor in tensors.items()} | classifier
    model_class = BeatsForAudioClassification if classifier else BeatsModel
    model_from_tensors(model_class, config, tensors, str(file)).save_pretrained(output)
    XacleFeatureExtractor().save_pretrained(output)
    use_umask(output)
    return output


def read_beats(file: str | Path) -> tuple[BeatsConfig, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Microsoft's file -> configuration, `BeatsModel`'s state dict, and the classifier's, empty if there is none.

    Raises:
        FileNotFoundError, ValueError: see [`convert_beats`].
    """
    checkpoint = read_checkpoint(file)
    if not {"cfg", "model"} <= checkpoint.keys():
        raise ValueError(f"'{file}' is no BEATs checkpoint: it has {sorted(checkpoint)[:5]}, not 'cfg' and 'model'")
    if not isinstance(checkpoint["cfg"], dict):
        raise ValueError(f"'{file}' is no BEATs checkpoint: its 'cfg' is a {type(checkpoint['cfg']).__name__}, not a dict")
    check_tensors(checkpoint["model"], str(file))
    tensors, classifier = {}, {}
    for name, tensor in checkpoint["model"].items():
        (classifier if name.startswith("predictor.") else tensors)[name] = tensor
    config = config_from_cfg(checkpoint["cfg"], str(file))
    config.weight_sources = [weight_source("audio encoder", f"BEATs ({Path(file).name}), by Microsoft", BEATS_LICENSE)]
    if classifier:
        labels = checkpoint.get("label_dict") or range(len(classifier["predictor.bias"]))
        config.id2label = {int(index): str(labels[index]) for index in labels}
        config.label2id = {label: index for index, label in config.id2label.items()}
        config.problem_type = "multi_label_classification"
    classifier = {name.replace("predictor.", "classifier."): tensor for name, tensor in classifier.items()}
    return config, rename_beats_tensors(tensors, str(file)), classifier
