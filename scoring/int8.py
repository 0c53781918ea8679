"""Opt-in int8 on a CPU: the linear layers' weights, and each call's activations, as 8-bit integers."""

import warnings

import torch
from torch import nn

from xacle.modeling_xacle import XacleForAlignmentScoring


def quantize_linears(scorer: XacleForAlignmentScoring) -> None:
    """Replace the linear layers of encoder, projector and language model by int8 ones; the score head stays float32.

    Weights get a scale for each output channel, activations one for each call (PyTorch's dynamic quantization). A row must
    therefore be computed by itself, or its score would depend on what it is batched with.

    Raises:
        ValueError: where PyTorch has no int8 linear layers.
    """
    try:
        settings = {nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is announced to move to torchao
            for part in (scorer.model.audio_tower, scorer.model.multi_modal_projector, scorer.model.language_model):
                torch.ao.quantization.quantize_dynamic(part, settings, inplace=True)
    except (AttributeError, RuntimeError) as error:
        raise ValueError(f"this PyTorch ({torch.__version__}) cannot compute in int8 here ({error}); use float32") from error
