"""LoRA adapters of a checkpoint that were not merged, under peft's names -> plain weights."""

import re

import torch

BASE = re.compile(r"\.base_layer\.(weight|bias)$")
ADAPTER = re.compile(r"^(.+)\.lora_([AB])\.(?:[^.]+\.)?weight$")
ADVICE = "merge them where the checkpoint was made (peft's `merge_and_unload`) and convert the result"


def merge_lora(tensors: dict[str, torch.Tensor], alpha: float | None, source: str) -> dict[str, torch.Tensor]:
    """Add each adapter to the layer it belongs to: `W + alpha / r * B @ A`; without adapters, `tensors` as they are.

    Args:
        tensors: By peft's names: `...base_model.model.X.base_layer.weight`, `...X.lora_A.default.weight` `[r, in]` and
            `...X.lora_B.default.weight` `[out, r]`; other layers only have the prefix.
        alpha: `lora_alpha` of the adapters' configuration, which the weights do not tell.

    Raises:
        ValueError: without `alpha`, and for adapters of another kind or number than one for a layer.
    """
    if not any(".lora_" in name or BASE.search(name) for name in tensors):
        return tensors
    if alpha is None:
        raise ValueError(f"'{source}' holds LoRA adapters: pass --lora-alpha, which they were trained with, or {ADVICE}")
    merged, adapters = {}, {}
    for name, tensor in tensors.items():
        plain = name.replace(".base_model.model.", ".")
        if match := ADAPTER.match(plain):
            pair = adapters.setdefault(match[1], {})
            if match[2] in pair:
                raise ValueError(f"'{source}' holds several LoRA adapters for {match[1]}: {ADVICE}")
            pair[match[2]] = tensor
        elif re.search(r"\.(lora_|modules_to_save\.|original_module\.)", plain):
            raise ValueError(f"'{source}' holds {name}, which cannot be merged here: {ADVICE}")
        else:
            merged[BASE.sub(r".\1", plain)] = tensor
    for layer, pair in adapters.items():
        weight = merged.get(f"{layer}.weight")
        if weight is None or pair.keys() != {"A", "B"}:
            raise ValueError(f"'{source}' has an incomplete LoRA adapter for {layer}: {ADVICE}")
        change = alpha / len(pair["A"]) * (pair["B"].float() @ pair["A"].float())
        merged[f"{layer}.weight"] = (weight.float() + change).to(weight.dtype)
    return merged
