"""Stage 2: learn to rank by CLAP pseudo-labels. `xacle train pseudo-labels --config FILE.yaml [--any_argument ...]`"""

from xacle.train.arguments import CONFIGS, DataArguments, ModelArguments, RankingArguments, parse_arguments
from xacle.train.ranking import train_ranking
from xacle.train.run import run_script


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train on a table with `clap_score` (see `xacle pseudo-label`); returns the validation metrics of the saved model."""
    config = CONFIGS / "pseudo_labels.yaml"
    model, data, ranking, training = parse_arguments(argv, config, ModelArguments, DataArguments, RankingArguments)
    return train_ranking("stage 2: pseudo-labels", "pseudo_label", model, data, ranking, training)


if __name__ == "__main__":
    run_script(main)
