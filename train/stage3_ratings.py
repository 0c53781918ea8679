"""Stage 3: learn to rank by human ratings, and any later fine-tuning on new ones.

`xacle train ratings --config FILE.yaml [--any-argument ...]`
"""

from pathlib import Path

from xacle.modeling_xacle import XacleForAlignmentScoring
from xacle.publish.trainer_mixin import check_license
from xacle.scoring.calibration import calibrate
from xacle.train.arguments import (
    CONFIGS,
    DataArguments,
    ListenerArguments,
    ModelArguments,
    RankingArguments,
    parse_arguments,
)
from xacle.train.batches import prepare_datasets
from xacle.train.build import build_model
from xacle.train.data import check_labels
from xacle.train.lora_and_freezing import add_lora
from xacle.train.run import finish, logger, run_script, run_training
from xacle.train.run_record import RunRecord
from xacle.train.set_up import read_tables, set_up
from xacle.train.trainer import AlignmentTrainer


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train on a table with `average_score`, or `score` and `listener_id`; returns the validation metrics.

    The saved model is calibrated on the validation ratings: an affine map, which leaves ranks as they are.
    """
    kinds = (ModelArguments, DataArguments, RankingArguments, ListenerArguments)
    arguments = parse_arguments(argv, CONFIGS / "ratings.yaml", *kinds)
    model_arguments, data, ranking, listeners, training = arguments
    checkpoint = set_up(training, data)
    tables = read_tables("rating", data, training, listeners)
    for table in tables.values():
        check_labels(table)

    model, processor = build_model(XacleForAlignmentScoring, model_arguments, **ranking.config_fields())
    check_license(model.config, training)
    datasets = prepare_datasets(tables, model, processor, data, training)

    model = add_lora(model, model_arguments)
    trainer = AlignmentTrainer(
        model, training, train_dataset=datasets["train"], eval_dataset=datasets.get("validation"), processing_class=processor
    )
    run_training(trainer, RunRecord("stage 3: ratings", arguments, datasets), checkpoint)

    title = "validation"
    adapter_only = model_arguments.lora_r and model_arguments.lora_output == "adapter"  # has no place for a calibration
    if trainer.eval_dataset is not None and not adapter_only:
        prediction = trainer.predict(trainer.eval_dataset)
        try:
            calibrate(trainer.model.config, prediction.predictions, prediction.label_ids)
            table = datasets["validation"].table
            trainer.record.add(calibration={"table": Path(table.source).name, "pairs": len(table)})
            title = "validation, calibrated on it"
        except ValueError as error:
            logger.warning(f"not calibrated: {error}")
    return finish(trainer, model_arguments.lora_output, title)


if __name__ == "__main__":
    run_script(main)
