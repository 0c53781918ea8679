"""What every training run does around its Trainer: tables, features, resuming, the record of how the weights came about."""

import dataclasses
import hashlib
import json
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from transformers import Trainer, TrainerCallback, set_seed
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import ProgressCallback, TrainerState
from transformers.trainer_utils import HubStrategy, sort_checkpoints
from transformers.utils import logging as transformers_logging

from xacle.core.clips import Share, file_digest
from xacle.core.provenance import RUN_RECORD, record_of, weights_checksum
from xacle.core.tables import TableError, write_problems
from xacle.publish.license import terms_of
from xacle.publish.push import check_repo_id, check_token
from xacle.scoring.metrics import METRICS
from xacle.train.arguments import DataArguments, TrainingArguments
from xacle.train.data import PairTable
from xacle.train.feature_cache import ClipFeatures, UndecodableClipsError, cache_features, undecodable_clips

logger = logging.getLogger(__name__)

PATHS = ("model_name_or_path", "audio_encoder", "language_model")  # may be spelled in other ways
# Groups of arguments that a run keeps when it is resumed, and of Trainer's those that decide what it learns.
UNCHANGEABLE_GROUPS = ("ModelArguments", "RankingArguments", "ListenerArguments", "TeacherArguments")
UNCHANGEABLE = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm", "weight_decay"),
    *("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "label_smoothing_factor", "neftune_noise_alpha"),
    *("seed", "data_seed", "train_sampling_strategy", "bf16", "fp16", "full_determinism"),
)
SHOWN_METRICS = ("eval_loss", "eval_caption_SRCC", "eval_SRCC", "eval_LCC", "eval_KTAU", "eval_MSE")
RECORDED_PACKAGES = ("xacle", "torch", "transformers", "accelerate", "datasets", "peft", "numpy", "soundfile", "soxr")


def set_up(training: TrainingArguments, data: DataArguments, metrics: tuple[str, ...] = METRICS) -> str | None:
    """Messages, seeds and folders of a run, checked before anything is loaded; returns the checkpoint to go on from, if any.

    Args:
        metrics: What `--metric_for_best_model` may be.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("xacle").setLevel(logging.INFO if training.process_index == 0 else logging.ERROR)
    transformers_logging.disable_progress_bar()  # of reading and writing weights; training keeps its own
    checkpoint = checkpoint_to_resume(training)
    best = training.metric_for_best_model
    if best is not None:
        training.metric_for_best_model = next((name for name in metrics if name.lower() == best.lower()), None)
        if training.metric_for_best_model is None:
            raise ValueError(f"--metric_for_best_model must be one of {', '.join(metrics)}, got {best!r}")
    if training.push_to_hub:
        if training.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise ValueError(f"--hub_strategy must be end or every_save, got {training.hub_strategy.value}")
        check_repo_id(training.hub_model_id or Path(training.output_dir).absolute().name)
        check_token(training.hub_token)
    try:
        for callback in get_reporting_integration_callbacks(training.report_to):
            callback()
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"--report_to {' '.join(training.report_to)}: {error}") from error
    for flag, folder in (("output_dir", training.output_dir), ("feature_cache", data.feature_cache)):
        if folder != "none" and training.process_index == 0:
            check_writable(flag, Path(folder))
    training.remove_unused_columns = False  # the collator reads sounds and captions, whatever the model's arguments
    training.label_names = ["labels"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    training.dataloader_num_workers = min(training.dataloader_num_workers, cores)  # more would only be in each other's way
    training.dataloader_pin_memory &= training.device.type != "cpu"
    if training.data_seed is None:
        training.data_seed = training.seed  # one order of the data for all processes
    set_seed(training.seed)  # new heads start alike in every process
    return checkpoint


def check_writable(flag: str, folder: Path) -> None:
    """Raise `ValueError` if a folder cannot be made or written to. What fails later leaves no empty folder behind."""
    new = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        for parent in new:
            parent.rmdir()
    except OSError as error:
        raise ValueError(f"--{flag} '{folder}' cannot be made: {error.strerror}") from error


def check_license(config, training: TrainingArguments) -> None:
    """Raise `ValueError` if the run is to be pushed and what its weights derive from does not allow that: before any work."""
    if training.push_to_hub:
        terms_of(config.weight_sources, training.hub_license, training.accept_license)


# --- Tables and features -------------------------------------------------------------------------------------------------


def write_rejected(table: PairTable, training: TrainingArguments, name: str) -> None:
    """Write the rows of a table that were left out to `<output_dir>/rejected_<name>.csv`, and say so."""
    if table.problems and training.process_index == 0:
        path = Path(training.output_dir) / f"rejected_{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_problems(path, table.problems)
        logger.warning(f"{len(table.problems)} rows of {table.source} are left out, listed with reasons in {path}")


def share_of(training: TrainingArguments) -> Share:
    """The run's processes, to share work among."""
    return Share(training.process_index, training.world_size)


def prepare_features(
    kind: str | None, role: str, table: PairTable, model, processor, data: DataArguments, training: TrainingArguments
) -> tuple[PairTable, ClipFeatures | None]:
    """Fill the feature cache for a table's clips; without a cache, make sure that all of them can be decoded.

    Args:
        kind: See [`cache_features`]; `None` for no cache.
        role: What the table is for, in the names of files.

    Returns:
        The table, without the pairs of clips that cannot be decoded (`on_error="skip"`), and its features, if cached.

    Raises:
        TableError: naming every clip that cannot be decoded (`on_error="stop"`).
    """
    share, workers = share_of(training), training.dataloader_num_workers
    cached = kind is not None and data.feature_cache != "none"
    if cached and kind == "audio_states":
        model.to(training.device)

    def cache(audio: dict) -> ClipFeatures:
        return cache_features(kind, audio, processor, Path(data.feature_cache), model, data.feature_cache_dtype, workers, share)

    features, errors = None, {}
    if cached:
        try:
            features = cache(table.used_audio)
        except UndecodableClipsError as error:
            errors = error.errors
    else:
        errors = undecodable_clips(table.used_audio, workers, share)
    if errors:
        table = table.without_clips(errors)
        if data.on_error == "stop":
            advice = "nothing was trained; mend them, or leave them out (--on_error skip)"
            raise TableError(table.source, table.problems, advice, use="decoded")
        write_rejected(table, training, role)
        if not len(table):
            raise TableError(table.source, table.problems, "no row can be used", use="decoded")
        features = cache(table.used_audio) if cached else None
    return table, features


# --- Resuming ------------------------------------------------------------------------------------------------------------


def is_complete(checkpoint: str | Path, world_size: int = 1) -> bool:
    """Whether a checkpoint was written to its end and can be resumed: the trainer's state is written last."""
    folder = Path(checkpoint)
    try:
        TrainerState.load_from_json(str(folder / "trainer_state.json"))
    except (OSError, ValueError):
        return False
    names = ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
    return all((folder / name).is_file() for name in names)


def checkpoint_to_resume(arguments: TrainingArguments) -> str | None:
    """The checkpoint that `--resume_from_checkpoint last` (or a path) means; `None` for a new run.

    Raises:
        FileExistsError: for a new run in a folder that holds another's checkpoints or model.
        FileNotFoundError, ValueError: if the given checkpoint does not exist or cannot be resumed from.
    """
    wanted, output_dir = arguments.resume_from_checkpoint, Path(arguments.output_dir)
    checkpoints = sort_checkpoints(str(output_dir)) if output_dir.is_dir() else []
    complete = [folder for folder in checkpoints if is_complete(folder, arguments.world_size)]
    if wanted is None or str(wanted).lower() == "false":
        if complete or any(output_dir.glob("*.safetensors")):
            raise FileExistsError(
                f"'{arguments.output_dir}' holds an earlier run: continue it with --resume_from_checkpoint last, or choose "
                "another --output_dir"
            )
        return None
    if str(wanted).lower() in ("last", "true"):
        if not complete and any((Path(folder) / "trainer_state.json").is_file() for folder in checkpoints):
            raise ValueError(
                f"the checkpoints in '{output_dir}' hold no state to resume from (save_only_model), or that of another "
                f"number of processes than {arguments.world_size}"
            )
        if not complete:
            logger.warning(f"no complete checkpoint in '{output_dir}': starting from the beginning")
        return complete[-1] if complete else None
    if not Path(wanted).is_dir():
        raise FileNotFoundError(f"no checkpoint at '{wanted}'")
    if not is_complete(wanted, arguments.world_size):
        raise ValueError(f"'{wanted}' is not complete: it was not written to its end, or by another number of processes")
    return str(wanted)


# --- The record ----------------------------------------------------------------------------------------------------------


def _without_secrets(command: list[str]) -> list[str]:
    """A command line, with the values of arguments such as `--hub_token` masked."""
    shown, secret = [], False
    for word in command:
        name, equals, _ = word.partition("=")
        names_a_token = name.startswith("--") and "token" in name and "embeddings" not in name
        shown.append("***" if secret else f"{name}=***" if names_a_token and equals else word)
        secret = names_a_token and not equals
    return shown


def _checksum(source: str | Path | None) -> str | None:
    if source is None or not Path(source).is_file():
        return None
    return "sha256:" + file_digest(source, hashlib.sha256())


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
        base = next((group.model_name_or_path for group in arguments if hasattr(group, "model_name_or_path")), None)
        self.record = {
            "stage": stage,
            "command": _without_secrets(sys.argv),
            "started": _now(),
            "arguments": {
                type(group).__name__: _with_whole_paths(
                    group.to_dict() if hasattr(group, "to_dict") else dataclasses.asdict(group)
                )
                for group in arguments
            },
            "versions": {"python": platform.python_version(), **versions},
            "data": {
                role: {"table": table.source, "checksum": _checksum(table.source), "pairs": len(table)}
                for role, table in tables.items()
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
        """Take over the history of the run that wrote `checkpoint`.

        Raises:
            ValueError: if that run was told other tables or settings: going on would be neither the one nor the other.
        """
        file = Path(checkpoint) / RUN_RECORD
        if not file.is_file():
            return
        earlier = json.loads(file.read_text(encoding="utf-8"))
        changes = []
        for role, now in self.record["data"].items():
            before = earlier["data"].get(role, {})
            if any(before.get(name) != now[name] for name in ("checksum", "pairs")):
                before = f"{before.get('table')} ({before.get('pairs')} pairs)"
                changes.append(f"{role} table: {before}, now {now['table']} ({now['pairs']} pairs)")
        for group, values in json.loads(json.dumps(self.record["arguments"], default=str)).items():
            before = earlier["arguments"].get(group, {})
            names = values if group in UNCHANGEABLE_GROUPS else UNCHANGEABLE
            changes += [
                f"{name}: {before[name]}, now {values[name]}"
                for name in names
                if name in values and name in before and name not in PATHS and before[name] != values[name]
            ]
        if changes:
            raise ValueError(
                f"'{checkpoint}' cannot be continued: what it was told has changed ({'; '.join(changes)}). Start anew from "
                f"its weights, with --model_name_or_path {checkpoint} and another --output_dir"
            )
        self.add(
            base=earlier.get("base"),
            resumed_from=checkpoint,
            earlier=[*earlier.get("earlier", []), {k: earlier[k] for k in ("started", "command")}],
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


class TrainingProgress(ProgressCallback):
    """Trainer's progress bar, with the latest loss and validation metric in it instead of a line for each log entry.

    `log_history.json` keeps them all.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.shown = {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None:
            return
        names = {"loss": "loss", "eval_SRCC": "validation SRCC", "eval_loss": "validation loss"}
        self.shown |= {names[name]: f"{value:.4g}" for name, value in logs.items() if name in names}
        self.training_bar.set_postfix(self.shown)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- The run -------------------------------------------------------------------------------------------------------------


def _with_whole_paths(arguments: dict) -> dict:
    """Arguments with the folders of models in full: they are known as such from anywhere."""
    return {
        name: str(Path(value).resolve()) if name in PATHS and value and Path(value).exists() else value
        for name, value in arguments.items()
    }


def check_batches(pairs: int, training: TrainingArguments, source: str) -> None:
    """Raise `ValueError` if a table does not fill a batch, which is told before anything is computed."""
    batch = training.train_batch_size * training.world_size
    if training.dataloader_drop_last and pairs < batch:
        raise ValueError(
            f"{pairs} training pairs in {source} do not fill one batch of {batch}: lower --per_device_train_batch_size "
            f"({training.per_device_train_batch_size})"
        )


def run_script(main: Callable[[], object]) -> None:
    """Run a stage script; what the user can mend is told in one line, by one process, without a traceback."""
    try:
        main()
    except (OSError, ValueError) as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def run_training(trainer: Trainer, record: RunRecord, checkpoint: str | None) -> None:
    """Train, from `checkpoint` if there is one, and leave the best model (with validation) or the last in the trainer."""
    arguments = trainer.args
    trainer.add_callback(record)
    trainer.record = record
    if trainer.pop_callback(ProgressCallback):  # none with --disable_tqdm
        trainer.add_callback(TrainingProgress)
    record.add(world_size=arguments.world_size, device=str(arguments.device), resumed_from=None)
    if checkpoint is not None:
        record.continue_from(checkpoint)
    # Whatever was drawn before (new heads, LoRA) must not move the run; processes must not share their dropout masks.
    set_seed(arguments.seed + arguments.process_index)
    try:
        result = trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        saved = [Path(folder).name for folder in sort_checkpoints(arguments.output_dir)][-1:]
        logger.warning(
            f"\ninterrupted in step {trainer.state.global_step + 1} of {trainer.state.max_steps}; "
            + (f"--resume_from_checkpoint last goes on from {saved[0]}" if saved else "nothing was saved yet")
        )
        raise
    record.add(finished=_now(), train_metrics=result.metrics, best_metric=trainer.state.best_metric)
    if trainer.is_world_process_zero():
        history = Path(arguments.output_dir) / "log_history.json"
        history.write_text(json.dumps(trainer.state.log_history, indent=1) + "\n", encoding="utf-8")


def finish(trainer: Trainer, record: RunRecord, lora_output: str = "merged", title: str = "validation") -> dict[str, float]:
    """Evaluate the final model; write it (adapters merged, unless they are to stay alone), its processor and the record.

    Returns:
        The validation metrics; empty without validation pairs.
    """
    output_dir = trainer.args.output_dir
    metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    record.add(validation_metrics=metrics)
    if hasattr(trainer.model, "merge_and_unload") and lora_output == "merged":
        trainer.model = trainer.model_wrapped = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model(output_dir, _internal_call=True)  # which pushes nothing: the card needs the record
    if trainer.is_world_process_zero():
        record.write(output_dir)
    if trainer.args.push_to_hub:
        trainer.upload_folder(output_dir, "Model save")
    if metrics:
        logger.info(f"{title}: " + "  ".join(f"{name[5:]} {metrics[name]:.4f}" for name in metrics if name in SHOWN_METRICS))
    logger.info(f"saved: {output_dir}")
    return metrics
