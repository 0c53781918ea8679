"""Loading models: folders and Hub ids, devices, dtypes."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars, validate_repo_id
from transformers.utils import logging

from xacle.configuration_xacle import XacleConfig

CLAP_TYPES = ("clap", "m2d_clap")  # transformers' `ClapModel`, and M2D-CLAP
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.float32}


def usable_device(device: str | None = None, dtype: str = "float32") -> torch.device:
    """A device by name, checked with a first tensor; the best there is if `None`. Raises `ValueError` if it cannot be used."""
    if dtype == "int8":
        if device is not None and not device.startswith("cpu"):
            raise ValueError(f"int8 is for CPUs, got the device '{device}'; try bfloat16 there")
        return torch.device("cpu")
    if device is None:
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it computes nothing")
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the device '{device}' cannot be used here ({reason}); try --device cpu") from error


def device_of_process() -> str | None:
    """The device of a process under `torchrun`: each has an accelerator of its own; `None` where there is no choice."""
    if "LOCAL_RANK" not in os.environ or not torch.accelerator.is_available():
        return None
    return f"{torch.accelerator.current_accelerator().type}:{os.environ['LOCAL_RANK']}"


def is_hub_id(name: str | Path) -> bool:
    """Whether `name` has the form of a Hub id with its owner: `owner/name`."""
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return False
    return "/" in str(name)


def check_folder_or_hub_id(model: str | Path, kind: str = "model") -> None:
    """Raise `FileNotFoundError` or `ValueError` if `model` is neither a folder with a config.json nor a Hub id."""
    folder = Path(model)
    if not folder.is_dir() and (folder.exists() or not is_hub_id(model)):
        raise FileNotFoundError(f"no {kind} folder at '{model}' (and it is no Hub id, which looks like owner/name)")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"'{model}' is no model folder: it has no config.json")


def check_model_folder(model: str | Path, or_clap: bool = False) -> str:
    """The type of the model in a folder or Hub repository; an error that helps if it is no scorer (or, if allowed, CLAP)."""
    folder = Path(model)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"'{model}' is a LoRA adapter without its base: AutoModel.from_pretrained loads both; `--lora-output merged` makes "
            "a folder that xacle's commands load"
        )
    check_folder_or_hub_id(model)
    config, _ = XacleConfig.get_config_dict(model)
    model_type = config.get("model_type")
    if or_clap and model_type in CLAP_TYPES:
        return model_type
    if model_type != XacleConfig.model_type:
        wanted = "an xacle scorer or a CLAP" if or_clap else "an xacle scorer"
        raise ValueError(
            f"'{model}' holds a model of type {model_type!r}, not {wanted}; a checkpoint in the authors' format (config.json "
            "and model.pt) is converted with `xacle convert tmu`"
        )
    for name in ("processor_config.json", "tokenizer_config.json", "tokenizer.json") if folder.is_dir() else ():
        try:
            json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(f"'{model}' has no {name}; save the processor beside the model") from error
        except ValueError as error:
            raise ValueError(f"'{folder / name}' is damaged ({error}); copy or download it again") from error
    return model_type


@contextmanager
def quiet_loading():
    """No report of missing and unexpected weights: the caller checks them itself."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def hide_progress_of_loading() -> None:
    """No progress bars while weights are read from a folder, or written to one; those of downloads stay."""
    downloads_hide_theirs = are_progress_bars_disabled()
    logging.disable_progress_bar()  # also of downloads
    if not downloads_hide_theirs:
        enable_progress_bars()


@contextmanager
def loading(name: str, option: str):
    """What a command loads a model in: see [`hide_progress_of_loading`], and an error that helps where there is no network.

    Raises:
        ConnectionError: with `name` and the option it came from, if it must come from the Hub, which cannot be reached.
    """
    hide_progress_of_loading()
    try:
        yield
    except OSError as error:
        if not any(isinstance(cause, LocalEntryNotFoundError) for cause in (error, error.__cause__)):
            raise
        raise ConnectionError(f"'{name}' ({option}) is no folder here, and the Hub cannot be reached (offline?)") from error
