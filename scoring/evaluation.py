"""`xacle evaluate`: predictions against human ratings."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers.utils import logging

from xacle.core.tables import write_rows
from xacle.scoring.metrics import METRICS, alignment_metrics, bootstrap_intervals
from xacle.scoring.plots import save_plot
from xacle.scoring.score_files import ScoreFile, first_of, pairs_by_text

logger = logging.get_logger(__name__)


@dataclass
class Evaluation:
    """
    What [`evaluate`] finds.

    Args:
        metrics: SRCC, LCC, KTAU and MSE.
        predictions, ratings: What they are of, the ratings averaged over listeners: `[pairs]`, in the order of the ratings.
        intervals: 95 % confidence intervals of the metrics, if asked for.
        systems: Each system's number of clips, SRCC over them, mean prediction and mean rating.
        system_srcc: SRCC between the systems' means, if there are several.
    """

    metrics: dict[str, float]
    predictions: np.ndarray = field(repr=False)
    ratings: np.ndarray = field(repr=False)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    systems: dict[str, dict[str, float]] = field(default_factory=dict)
    system_srcc: float | None = None

    @property
    def pairs(self) -> int:
        return len(self.ratings)

    def __str__(self) -> str:
        lines = []
        for name, value in self.metrics.items():
            interval = "   [{:.4f}, {:.4f}]".format(*self.intervals[name]) if name in self.intervals else ""
            lines.append(f"{name:<6}{value:8.4f}{interval}")
        lines.append(f"{'N':<6}{self.pairs:8d}")
        if self.systems:
            width = max(map(len, self.systems)) + 2
            lines.append(f"\n{'system':<{width}}{'clips':>6}{'SRCC':>9}{'predicted':>11}{'rated':>8}")
            for name, row in self.systems.items():
                lines.append(f"{name:<{width}}{row['clips']:6.0f}{row['SRCC']:9.4f}{row['predicted']:11.3f}{row['rated']:8.3f}")
            if self.system_srcc is not None:
                lines.append(f"system-level SRCC {self.system_srcc:.4f}")
        return "\n".join(lines)


def evaluate(predictions: Path, ratings: Path, resamples: int = 1000) -> Evaluation:
    """
    Args:
        predictions: A table of scores, see [`ScoreFile.predictions`].
        ratings: A table of ratings, see [`ScoreFile.ratings`].
        resamples: Of the bootstrap for the 95 % confidence intervals; 0 for none.

    Raises:
        FileNotFoundError, ValueError: for tables that cannot be read; if a rated pair has no prediction (its absence would
            make another test set), fewer than two are rated, or a clip's caption is not the same in both tables.
    """
    scored_file, rated_file = ScoreFile(predictions), ScoreFile(ratings)
    by_text = pairs_by_text([rated_file, scored_file])
    predicted, rated = scored_file.predictions(by_text), rated_file.ratings(by_text)
    if missing := [key for key in rated if key not in predicted]:
        raise ValueError(
            f"'{predictions}' lacks {len(missing)} of the {len(rated)} pairs in '{ratings}', among them "
            f"{first_of(missing)}; score them all"
        )
    if len(rated) < 2:
        raise ValueError(f"'{ratings}' rates {len(rated)} pair: at least 2 are needed to correlate")
    if unrated := [key for key in predicted if key not in rated]:
        logger.warning(
            f"{len(unrated)} of the {len(predicted)} predictions have no rating in '{ratings}' and are left out, the first "
            f"{unrated[0]}"
        )
    scores = np.array([predicted[key] for key in rated])
    means = np.array([rating.mean for rating in rated.values()])
    if means.min() < 0 or means.max() > 10:
        logger.warning(
            f"the ratings in '{ratings}' run from {means.min():g} to {means.max():g}, where 0 to 10 is expected: the MSE means "
            "little; rescale them"
        )
    evaluation = Evaluation(alignment_metrics(scores, means), scores, means)
    if resamples:
        evaluation.intervals = bootstrap_intervals(scores, means, resamples)
    systems = np.array([rating.model_id or "" for rating in rated.values()])
    for system in sorted(set(systems) - {""}):
        chosen = systems == system
        several = chosen.sum() > 1
        evaluation.systems[str(system)] = {
            "clips": int(chosen.sum()),
            "SRCC": alignment_metrics(scores[chosen], means[chosen])["SRCC"] if several else float("nan"),
            "predicted": float(scores[chosen].mean()),
            "rated": float(means[chosen].mean()),
        }
    if len(evaluation.systems) > 1:
        table = evaluation.systems.values()
        predicted_means, rated_means = [row["predicted"] for row in table], [row["rated"] for row in table]
        evaluation.system_srcc = alignment_metrics(predicted_means, rated_means)["SRCC"]
    return evaluation


def write_evaluation(output: Path, evaluation: Evaluation) -> None:
    """Write `metric,value` rows in the challenge's order: SRCC, LCC, KTAU, MSE, N."""
    rows = [*((name, evaluation.metrics[name]) for name in METRICS), ("N", evaluation.pairs)]
    write_rows(output, ["metric", "value"], rows)


def scatter_plot(output: Path, evaluation: Evaluation) -> None:
    """Predictions against ratings as a picture (png, pdf, svg). Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(evaluation.ratings, evaluation.predictions, s=8, alpha=0.4, linewidths=0)
    axes.set_xlabel("mean human rating")
    axes.set_ylabel("predicted score")
    axes.set_title(f"SRCC {evaluation.metrics['SRCC']:.3f}, LCC {evaluation.metrics['LCC']:.3f}, N {evaluation.pairs}")
    axes.grid(alpha=0.3)
    save_plot(figure, output)
