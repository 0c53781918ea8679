"""Stage 3: learn to rank by human ratings, and any later fine-tuning on new ones.

`xacle train ratings --config FILE.yaml [--any_argument ...]`
"""

from xacle.train.arguments import (
    CONFIGS,
    DataArguments,
    ListenerArguments,
    ModelArguments,
    RankingArguments,
    parse_arguments,
)
from xacle.train.ranking import train_ranking
from xacle.train.run import run_script


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train on a table with `average_score`, or `score` and `listener_id`; returns the validation metrics."""
    kinds = (ModelArguments, DataArguments, RankingArguments, ListenerArguments)
    model, data, ranking, listeners, training = parse_arguments(argv, CONFIGS / "ratings.yaml", *kinds)
    return train_ranking("stage 3: ratings", "rating", model, data, ranking, training, listeners)


if __name__ == "__main__":
    run_script(main)
