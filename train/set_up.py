"""Everything before a stage's model is loaded: messages, seeds, folders, what pushing needs, and the tables."""

import logging
import os
import tempfile
from pathlib import Path

from transformers import set_seed
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging as transformers_logging

from xacle.publish.trainer_mixin import check_push
from xacle.scoring.metrics import METRICS
from xacle.train.arguments import DataArguments, ListenerArguments, TrainingArguments
from xacle.train.data import PairTable, read_table, write_rejected
from xacle.train.resume import checkpoint_to_resume
from xacle.train.splits import check_overlap

logger = logging.getLogger(__name__)


def set_up(training: TrainingArguments, data: DataArguments, metrics: tuple[str, ...] = METRICS) -> str | None:
    """Messages, seeds and folders of a run, checked before anything is loaded; returns the checkpoint to resume from, if any.

    Args:
        metrics: What `--metric-for-best-model` may be.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("xacle").setLevel(logging.INFO if training.process_index == 0 else logging.ERROR)
    transformers_logging.disable_progress_bar()  # of reading and writing weights; training keeps its own
    checkpoint = checkpoint_to_resume(training)
    best = training.metric_for_best_model
    if best is not None:
        training.metric_for_best_model = next((name for name in metrics if name.lower() == best.lower()), None)
        if training.metric_for_best_model is None:
            raise ValueError(f"--metric-for-best-model must be one of {', '.join(metrics)}, got {best!r}")
    if training.early_stopping_patience is not None and (data.validation_file is None or not training.load_best_model_at_end):
        raise ValueError("--early-stopping-patience needs --validation-file, and --load-best-model-at-end true")
    if training.push_to_hub:
        check_push(training)
    try:
        for callback in get_reporting_integration_callbacks(training.report_to):
            callback()
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"--report-to {' '.join(training.report_to)}: {error}") from error
    for name, folder in (("--output-dir", training.output_dir), ("--feature-cache", data.feature_cache)):
        if folder != "none" and training.process_index == 0:
            check_writable(name, Path(folder))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    training.dataloader_num_workers = min(training.dataloader_num_workers, cores)  # more would only be in each other's way
    training.dataloader_pin_memory &= training.device.type != "cpu"
    set_seed(training.seed)  # new heads start alike in every process
    return checkpoint


def check_writable(name: str, folder: Path) -> None:
    """Raise `ValueError` if a folder cannot be made or written to. What fails later leaves no empty folder behind."""
    new = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        for parent in new:
            parent.rmdir()
    except OSError as error:
        raise ValueError(f"{name} '{folder}' cannot be made: {error.strerror}") from error


def read_tables(
    label: str, data: DataArguments, training: TrainingArguments, listeners: ListenerArguments | None = None
) -> dict[str, PairTable]:
    """The tables "train" and, if there is one, "validation", checked against each other.

    Without validation pairs nothing is evaluated: `training` is changed accordingly.

    Args:
        label: Of the training table: "rating", "pseudo_label" or "caption". Validation pairs have ratings or pseudo-labels
            in the first two cases.
    """
    source, validation_source = data.source("train"), data.source("validation")
    if source is None:
        raise ValueError("pass --train-file, the table to train on, or --train-dataset")
    options = {} if listeners is None else dict(vars(listeners))
    train = read_table(source, data.audio_dir, label, on_error=data.on_error, names=data.names, **options)
    write_rejected(train, training, "train")
    batch = training.train_batch_size * training.world_size
    if training.dataloader_drop_last and len(train) < batch:
        raise ValueError(
            f"{len(train)} training pairs in {train.source} do not fill one batch of {batch}: lower "
            f"--per-device-train-batch-size ({training.per_device_train_batch_size})"
        )
    if label != "caption" and batch == 1:
        raise ValueError("a list needs at least two pairs: raise --per-device-train-batch-size")
    if validation_source is None:
        logger.warning("without --validation-file nothing is evaluated and the last weights are kept")
        training.eval_strategy = IntervalStrategy.NO
        training.do_eval = training.load_best_model_at_end = False
        if training.save_strategy == SaveStrategy.BEST:
            training.save_strategy = SaveStrategy.EPOCH
        return {"train": train}
    validation = read_table(
        validation_source,
        data.validation_audio_dir,
        "caption" if label == "caption" else "any",
        on_error=data.on_error,
        audio_dir_option="--validation-audio-dir",
        names=data.names,
    )
    write_rejected(validation, training, "validation")
    if label != "caption" and len(validation) < 2:
        raise ValueError(f"'{validation.source}' has one usable pair; ranks need at least two")
    memory = None if data.feature_cache == "none" else Path(data.feature_cache)
    check_overlap(train, validation, data.allow_overlap, memory, training.share)
    return {"train": train, "validation": validation}
