"""What every training run does around its Trainer: tables, features, resuming, the record of how the weights came about."""

import dataclasses
import hashlib
import json
import logging
import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import sort_checkpoints

from xacle.processing_xacle import XacleProcessor
from xacle.scoring.tables import Problem, TableError, write_problems
from xacle.train.arguments import DataArguments
from xacle.train.data import PairTable
from xacle.train.feature_cache import ClipFeatures, UndecodableClipsError, cache_features

logger = logging.getLogger(__name__)

RUN_RECORD = "run.json"
RECORDED_PACKAGES = ("xacle", "torch", "transformers", "accelerate", "datasets", "peft", "numpy", "soundfile", "soxr")


def set_up(training: TrainingArguments, data: DataArguments) -> str | None:
    """Messages, seeds and folders of a run, before anything is loaded; returns the checkpoint to go on from, if any."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("xacle").setLevel(logging.INFO if training.process_index == 0 else logging.ERROR)
    checkpoint = checkpoint_to_resume(training)
    training.remove_unused_columns = False  # the collator reads sounds and captions, whatever the model's arguments
    training.label_names = ["labels"]
    training.dataloader_pin_memory &= training.device.type != "cpu"
    if training.data_seed is None:
        training.data_seed = training.seed  # one order of the data for all processes
    if data.feature_cache != "none" and training.process_index == 0:
        Path(data.feature_cache).mkdir(parents=True, exist_ok=True)
    set_seed(training.seed)  # new heads start alike in every process
    return checkpoint


# --- Tables and features -------------------------------------------------------------------------------------------------


def write_rejected(table: PairTable, training: TrainingArguments, name: str) -> None:
    """Write the rows of a table that were left out to `<output_dir>/rejected_<name>.csv`, and say so."""
    if table.problems and training.process_index == 0:
        path = Path(training.output_dir) / f"rejected_{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_problems(path, table.problems)
        logger.warning(f"{len(table.problems)} rows of {table.source} are left out, listed with reasons in {path}")


def prepare_features(
    kind: str, table: PairTable, model, processor: XacleProcessor, data: DataArguments, training: TrainingArguments
) -> tuple[PairTable, ClipFeatures | None]:
    """Fill the feature cache for a table's clips.

    Returns:
        The table, without the pairs of clips that cannot be decoded (`on_error="skip"`), and its features; `None` without
        a cache.

    Raises:
        TableError: naming every clip that cannot be decoded (`on_error="stop"`).
    """
    if data.feature_cache == "none":
        return table, None
    audio = table.used_audio
    options = {
        "dtype": data.feature_cache_dtype,
        "num_workers": training.dataloader_num_workers,
        "process": training.process_index,
        "num_processes": training.world_size,
        "barrier": torch.distributed.barrier if training.world_size > 1 else lambda: None,
    }
    if kind == "audio_states":
        model.to(training.device)
        options["model"] = model
    try:
        return table, cache_features(kind, audio, processor, Path(data.feature_cache), **options)
    except UndecodableClipsError as error:
        problems = [
            Problem(0, str(reason), {"wav_file_name": table.clips[clip]}) for clip, reason in sorted(error.errors.items())
        ]
        if data.on_error == "stop":
            advice = "nothing was trained; mend them, or pass --on_error skip to leave their pairs out"
            raise TableError(table.source, problems, advice, use="decoded") from error
        kept = ~torch.isin(torch.from_numpy(table.clip_index), torch.tensor(list(error.errors))).numpy()
        table = dataclasses.replace(table.take(kept), problems=problems)
        write_rejected(table, training, f"{Path(table.source).stem}_undecodable")
        audio = {clip: item for clip, item in audio.items() if clip not in error.errors}
        return table, cache_features(kind, audio, processor, Path(data.feature_cache), **options)


# --- Resuming ------------------------------------------------------------------------------------------------------------


def complete_checkpoints(output_dir: str, world_size: int = 1) -> list[str]:
    """The checkpoints of a folder that were written to their end, oldest first: the trainer's state is written last."""
    if not Path(output_dir).is_dir():
        return []
    complete = []
    for folder in map(Path, sort_checkpoints(output_dir)):
        try:
            TrainerState.load_from_json(str(folder / "trainer_state.json"))
        except (OSError, ValueError):
            continue
        names = ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
        if all((folder / name).is_file() for name in names):
            complete.append(str(folder))
    return complete


def checkpoint_to_resume(arguments: TrainingArguments) -> str | None:
    """The checkpoint that `--resume_from_checkpoint last` (or a path) means; `None` for a new run.

    Raises:
        FileExistsError: for a new run in a folder that holds another's checkpoints or model.
        FileNotFoundError: if the given checkpoint does not exist.
    """
    wanted = arguments.resume_from_checkpoint
    complete = complete_checkpoints(arguments.output_dir, arguments.world_size)
    if wanted is None or str(wanted).lower() == "false":
        if complete or (Path(arguments.output_dir) / RUN_RECORD).exists():
            raise FileExistsError(
                f"'{arguments.output_dir}' holds an earlier run: continue it with --resume_from_checkpoint last, or choose "
                "another --output_dir"
            )
        return None
    if str(wanted).lower() in ("last", "true"):
        if not complete:
            logger.warning(f"no complete checkpoint in '{arguments.output_dir}': starting from the beginning")
        return complete[-1] if complete else None
    if not Path(wanted).is_dir():
        raise FileNotFoundError(f"no checkpoint at '{wanted}'")
    return str(wanted)


# --- The record ----------------------------------------------------------------------------------------------------------


def _checksum(source: str | Path | None) -> str | None:
    if source is None or not Path(source).is_file():
        return None
    with open(source, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


class RunRecord(TrainerCallback):
    """Writes how the weights came about to `run.json`, beside them and in every checkpoint.

    Args:
        stage: Name of the stage.
        arguments: The dataclasses the run was told.
        tables: The tables it read, by their role.
    """

    def __init__(self, stage: str, arguments: list, tables: dict[str, PairTable]):
        versions = {}
        for package in RECORDED_PACKAGES:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                versions[package] = None
        self.record = {
            "stage": stage,
            "command": sys.argv,
            "started": _now(),
            "arguments": {
                type(group).__name__: group.to_dict() if hasattr(group, "to_dict") else dataclasses.asdict(group)
                for group in arguments
            },
            "versions": {"python": platform.python_version(), **versions},
            "data": {
                role: {"table": table.source, "checksum": _checksum(table.source), "pairs": len(table)}
                for role, table in tables.items()
            },
        }

    def add(self, **fields) -> None:
        self.record.update(fields)

    def write(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.record, indent=2, ensure_ascii=False, default=str)
        (Path(folder) / RUN_RECORD).write_text(text + "\n", encoding="utf-8")

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.write(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


# --- The run -------------------------------------------------------------------------------------------------------------


def run_training(trainer: Trainer, record: RunRecord, checkpoint: str | None) -> None:
    """Train, from `checkpoint` if there is one, and leave the best model (with validation) or the last in the trainer."""
    arguments = trainer.args
    trainer.add_callback(record)
    record.add(world_size=arguments.world_size, device=str(arguments.device), resumed_from=checkpoint)
    if trainer.is_world_process_zero():
        record.write(arguments.output_dir)
    # Whatever was drawn before (new heads, LoRA) must not move the run; processes must not share their dropout masks.
    set_seed(arguments.seed + arguments.process_index)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    record.add(finished=_now(), train_metrics=result.metrics, best_metric=trainer.state.best_metric)
    if trainer.is_world_process_zero():
        history = Path(arguments.output_dir) / "log_history.json"
        history.write_text(json.dumps(trainer.state.log_history, indent=1) + "\n", encoding="utf-8")


def save_final(trainer: Trainer, record: RunRecord, lora_output: str = "merged") -> None:
    """Write the model (with merged adapters, unless they are to stay alone), the processor and the record to `output_dir`."""
    arguments = trainer.args
    if hasattr(trainer.model, "merge_and_unload") and lora_output == "merged":
        if trainer.is_world_process_zero():
            merged = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
            merged.save_pretrained(arguments.output_dir)
            trainer.processing_class.save_pretrained(arguments.output_dir)
    else:
        trainer.save_model(arguments.output_dir)
    if trainer.is_world_process_zero():
        record.write(arguments.output_dir)
        logger.info(f"saved: {arguments.output_dir}")
