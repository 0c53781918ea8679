"""`run.json`: how the weights of a run came about. Read again by core/provenance.py, for the model card and for resuming."""

import dataclasses
import hashlib
import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from transformers import TrainerCallback

from xacle.core.clips import file_digest
from xacle.core.provenance import RUN_RECORD, record_of, weights_checksum
from xacle.train.batches import PairDataset
from xacle.train.resume import MODEL_PATHS, check_unchanged

RECORDED_PACKAGES = ("xacle", "torch", "transformers", "accelerate", "datasets", "peft", "numpy", "soundfile", "soxr")


class RunRecord(TrainerCallback):
    """Writes how the weights came about to `run.json`, beside them and in every checkpoint.

    Args:
        stage: Name of the stage.
        arguments: The dataclasses that the command line was parsed into.
        datasets: The pairs it read, by their role.
    """

    def __init__(self, stage: str, arguments: tuple, datasets: dict[str, PairDataset]):
        base = next((group.model_name_or_path for group in arguments if hasattr(group, "model_name_or_path")), None)
        self.record = {
            "stage": stage,
            "command": _without_secrets(sys.argv),
            "started": now(),
            "arguments": {type(group).__name__: _recorded(group) for group in arguments},
            "versions": {"python": platform.python_version(), **{package: _version(package) for package in RECORDED_PACKAGES}},
            "data": {
                role: {
                    "table": dataset.table.source,
                    "checksum": _checksum(dataset.table.source) or dataset.table.revision,
                    "pairs": len(dataset),
                }
                for role, dataset in datasets.items()
            },
            "base_model": None if base is None or Path(base).exists() else base,  # on the Hub
            "base": (record_of(base) or None) if base else None,
        }

    def add(self, **fields) -> None:
        self.record.update(fields)

    def write(self, folder: str | Path, trained: bool = True) -> None:
        """Write it to `folder`; with the checksum of the weights there, if these are what was `trained`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        record = {**self.record, "weights": weights_checksum(folder) if trained else None}
        text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
        (Path(folder) / RUN_RECORD).write_text(text + "\n", encoding="utf-8")

    def continue_from(self, checkpoint: str) -> None:
        """Take over the history of the run that wrote `checkpoint`. Raises `ValueError` as [`check_unchanged`] does."""
        file = Path(checkpoint) / RUN_RECORD
        if not file.is_file():
            return
        earlier = json.loads(file.read_text(encoding="utf-8"))
        check_unchanged(checkpoint, earlier, json.loads(json.dumps(self.record, default=str)))
        self.add(
            base=earlier.get("base"),
            resumed_from=checkpoint,
            earlier=[*earlier.get("earlier", []), {name: earlier[name] for name in ("started", "command")}],
        )

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:  # not earlier: what cannot start leaves no trace
            self.write(args.output_dir, trained=False)
        if state.best_global_step and args.load_best_model_at_end:
            # Trainer forgets it if it is not where it was: the folder may have moved, or the path have been relative.
            best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            if not best.is_dir():
                raise FileNotFoundError(f"the best checkpoint so far, '{best}', is gone: put it back, or start a new run")
            state.best_model_checkpoint = str(best)

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.write(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _recorded(group) -> dict:
    """A dataclass of arguments as a dict, with the folders of models as absolute paths: they mean the same from anywhere."""
    values = group.to_dict() if hasattr(group, "to_dict") else dataclasses.asdict(group)
    return {
        name: str(Path(value).resolve()) if name in MODEL_PATHS and value and Path(value).exists() else value
        for name, value in values.items()
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _checksum(source: str | Path | None) -> str | None:
    if source is None or not Path(source).is_file():
        return None
    return "sha256:" + file_digest(source, hashlib.sha256())


def _without_secrets(command: list[str]) -> list[str]:
    """A command line, with the values of arguments such as `--hub-token` masked."""
    masked, secret = [], False
    for word in command:
        name, equals, _ = word.partition("=")
        names_a_token = name.startswith("--") and "token" in name and "embeddings" not in name
        masked.append("***" if secret else f"{name}=***" if names_a_token and equals else word)
        secret = names_a_token and not equals
    return masked
