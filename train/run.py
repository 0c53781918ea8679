"""What every stage does with its trainer: train, or continue; then evaluate, save and publish."""

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from transformers import EarlyStoppingCallback, set_seed
from transformers.trainer_utils import sort_checkpoints

from xacle.core.state_dicts import use_umask
from xacle.train.run_record import RunRecord, now
from xacle.train.trainer import XacleTrainer

logger = logging.getLogger(__name__)

PRINTED_METRICS = ("eval_loss", "eval_caption_SRCC", "eval_SRCC", "eval_LCC", "eval_KTAU", "eval_MSE")


def run_script(main: Callable[[], object]) -> None:
    """Run a stage script; errors that the user can fix are printed in one line, by one process, without a traceback."""
    try:
        main()
    except (OSError, ValueError) as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def run_training(trainer: XacleTrainer, record: RunRecord, checkpoint: str | None) -> None:
    """Train, from `checkpoint` if there is one, and leave the best model (with validation) or the last in the trainer."""
    arguments = trainer.args
    if arguments.early_stopping_patience is not None:
        arguments.restore_callback_states_from_checkpoint = True  # a resumed run counts on
        trainer.add_callback(EarlyStoppingCallback(arguments.early_stopping_patience))
    trainer.add_callback(record)
    trainer.record = record
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
            + (f"--resume-from-checkpoint last continues from {saved[0]}" if saved else "nothing was saved yet")
        )
        raise
    record.add(finished=now(), train_metrics=result.metrics, best_metric=trainer.state.best_metric)
    if trainer.is_world_process_zero():
        history = Path(arguments.output_dir) / "log_history.json"
        history.write_text(json.dumps(trainer.state.log_history, indent=1) + "\n", encoding="utf-8")


def finish(trainer: XacleTrainer, lora_output: str = "merged", title: str = "validation") -> dict[str, float]:
    """Evaluate the final model; write it (adapters merged, unless they are to stay alone), its processor and the record.

    Returns:
        The validation metrics; empty without validation pairs.
    """
    output_dir, record = trainer.args.output_dir, trainer.record
    metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    record.add(validation_metrics=metrics)
    if hasattr(trainer.model, "merge_and_unload") and lora_output == "merged":
        trainer.model = trainer.model_wrapped = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model(output_dir, _internal_call=True)  # which pushes nothing: the card needs the record
    if trainer.is_world_process_zero():
        use_umask(output_dir)
        record.write(output_dir)
    if trainer.args.push_to_hub:
        trainer.upload_folder(output_dir, "Model save")
    if metrics:
        printed = [f"{name[5:]} {metrics[name]:.4f}" for name in metrics if name in PRINTED_METRICS]
        logger.info(f"{title}: {'  '.join(printed)}")
    logger.info(f"saved: {output_dir}")
    return metrics
