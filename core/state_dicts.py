"""What every converter does: read a checkpoint without running its code, and fit its state dict into a model exactly."""

import os
import zipfile
from pathlib import Path

import torch
from transformers import PreTrainedModel


def read_checkpoint(path: str | Path) -> dict:
    """Load a PyTorch checkpoint without executing pickled code, memory-mapped where its format allows.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no checkpoint, or holds more than tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at '{path}'")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever torch's unpickler stumbles over; its own advice is to execute the file
        raise ValueError(
            f"'{path}' cannot be read as a checkpoint of tensors ({type(error).__name__}): it is damaged, no PyTorch file, or "
            "needs pickled code, which is never executed; re-save its state dict with `torch.save(model.state_dict(), ...)`"
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"'{path}' holds a {type(checkpoint).__name__}, not a dict")
    return checkpoint


def check_tensors(tensors, source: str) -> None:
    """Raise `ValueError`, naming the entries, unless `tensors` is a dict of tensors."""
    if not isinstance(tensors, dict):
        raise ValueError(f"'{source}' holds a {type(tensors).__name__} where a dict of tensors is expected")
    if others := [str(name) for name, tensor in tensors.items() if not isinstance(tensor, torch.Tensor)]:
        raise ValueError(f"'{source}' holds entries that are no tensors: {', '.join(others)}")


def model_from_tensors(model_class: type[PreTrainedModel], config, tensors: dict, source: str) -> PreTrainedModel:
    """Build `model_class` around `tensors` (no copy) after checking that names and shapes match exactly.

    Raises:
        ValueError: naming every missing, unexpected and misshapen tensor.
    """
    with torch.device("meta"):
        model = model_class(config)
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in tensors]
    problems += [f"unexpected: {name} {list(tensor.shape)}" for name, tensor in tensors.items() if name not in expected]
    problems += [
        f"shape of {name}: {list(tensors[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in tensors and list(tensors[name].shape) != shape
    ]
    if problems:
        raise ValueError(f"'{source}' does not fit {model_class.__name__}:\n  " + "\n  ".join(problems))
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def use_umask(folder: str | Path) -> None:
    """Give a folder's weights the permissions that new files have: safetensors writes them for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for file in Path(folder).glob("*.safetensors"):
        file.chmod(0o666 & ~mask)
