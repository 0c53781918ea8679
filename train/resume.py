"""`--resume-from-checkpoint`: which checkpoint a run continues from, and whether it is still the same run."""

import logging
from pathlib import Path

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import sort_checkpoints

from xacle.train.arguments import TrainingArguments, option

logger = logging.getLogger(__name__)

# Groups of arguments that must stay as they are when a run is resumed, and of Trainer's those that decide what it learns.
UNCHANGEABLE_GROUPS = ("ModelArguments", "RankingArguments", "ListenerArguments", "TeacherArguments")
UNCHANGEABLE = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm", "weight_decay"),
    *("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "label_smoothing_factor", "neftune_noise_alpha"),
    *("head_learning_rate", "early_stopping_patience"),
    *("seed", "data_seed", "train_sampling_strategy", "bf16", "fp16", "full_determinism"),
)
MODEL_PATHS = ("model_name_or_path", "audio_encoder", "language_model")  # the same folder has several paths


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
    """The checkpoint that `--resume-from-checkpoint last` (or a path) means; `None` for a new run.

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
                f"'{arguments.output_dir}' holds an earlier run: continue it with --resume-from-checkpoint last, or choose "
                "another --output-dir"
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


def check_unchanged(checkpoint: str, earlier: dict, now: dict) -> None:
    """Raise `ValueError`, naming the differences, if a run's tables or settings are not those it was started with.

    Args:
        earlier, now: The contents of `run.json` in the checkpoint, and of the run that is to continue it.
    """
    changes = []
    for role, table in now["data"].items():
        before = earlier["data"].get(role, {})
        if any(before.get(name) != table[name] for name in ("checksum", "pairs")):
            before = f"{before.get('table')} ({before.get('pairs')} pairs)"
            changes.append(f"{role} table: {before}, now {table['table']} ({table['pairs']} pairs)")
    for group, values in now["arguments"].items():
        before = earlier["arguments"].get(group, {})
        names = values if group in UNCHANGEABLE_GROUPS else UNCHANGEABLE
        changes += [
            f"{option(name)}: {before[name]}, now {values[name]}"
            for name in names
            if name in values and name in before and name not in MODEL_PATHS and before[name] != values[name]
        ]
    if changes:
        raise ValueError(
            f"'{checkpoint}' cannot be continued: its tables or settings have changed ({'; '.join(changes)}). Start anew from "
            f"its weights, with --model-name-or-path {checkpoint} and another --output-dir"
        )
