"""Stage 2: learn to rank by CLAP pseudo-labels. `xacle train pseudo-labels --config FILE.yaml [--any-argument ...]`"""

from xacle.core.provenance import merge_sources, teacher_sources
from xacle.modeling_xacle import XacleForAlignmentScoring
from xacle.publish.trainer_mixin import check_license
from xacle.train.arguments import CONFIGS, DataArguments, ModelArguments, RankingArguments, parse_arguments
from xacle.train.batches import prepare_datasets
from xacle.train.build import build_model
from xacle.train.data import check_labels
from xacle.train.lora_and_freezing import add_lora
from xacle.train.run import finish, run_script, run_training
from xacle.train.run_record import RunRecord
from xacle.train.set_up import read_tables, set_up
from xacle.train.trainer import AlignmentTrainer


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train on a table with `clap_score` (see `xacle pseudo-label`); returns the validation metrics of the saved model."""
    arguments = parse_arguments(argv, CONFIGS / "pseudo_labels.yaml", ModelArguments, DataArguments, RankingArguments)
    model_arguments, data, ranking, training = arguments
    checkpoint = set_up(training, data)
    tables = read_tables("pseudo_label", data, training)
    for table in tables.values():
        check_labels(table)

    model, processor = build_model(XacleForAlignmentScoring, model_arguments, **ranking.config_fields())
    model.config.weight_sources = merge_sources(model.config.weight_sources, teacher_sources(str(data.source("train"))))
    check_license(model.config, training)
    datasets = prepare_datasets(tables, model, processor, data, training)

    model = add_lora(model, model_arguments)
    trainer = AlignmentTrainer(
        model, training, train_dataset=datasets["train"], eval_dataset=datasets.get("validation"), processing_class=processor
    )
    run_training(trainer, RunRecord("stage 2: pseudo-labels", arguments, datasets), checkpoint)
    return finish(trainer, model_arguments.lora_output)


if __name__ == "__main__":
    run_script(main)
