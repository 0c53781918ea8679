"""`xacle evaluate`: predictions against human ratings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers.utils import logging

from xacle.core.columns import MODEL_ID_COLUMNS, columns_of, find_column
from xacle.core.tables import check_distinct, write_rows
from xacle.scoring.comparison import names_of
from xacle.scoring.metrics import METRICS, alignment_metrics, bootstrap_intervals
from xacle.scoring.plots import save_plot
from xacle.scoring.score_files import COSINE, ScoreFile, first_of, pairs_by_text, read_sidecar

logger = logging.get_logger(__name__)


@dataclass
class Evaluation:
    """
    What [`evaluate`] finds.

    Args:
        metrics: SRCC, LCC, KTAU and MSE; no MSE of cosines.
        predictions, ratings: What they are of, the ratings averaged over listeners: `[pairs]`, in the order of the ratings.
        intervals: 95 % confidence intervals of the metrics, if asked for.
        systems: Each system's number of clips, SRCC over them, mean prediction and mean rating; or those of the values of
            another column.
        system_srcc: SRCC between the systems' means, if there are several.
        grouped_by: What `systems` are: `"system"`, or the name of the other column.
        name: Of the predictions: the file's, without suffix.
        model: What made them, if that is known.
    """

    metrics: dict[str, float]
    predictions: np.ndarray = field(repr=False)
    ratings: np.ndarray = field(repr=False)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    systems: dict[str, dict[str, float]] = field(default_factory=dict)
    system_srcc: float | None = None
    grouped_by: str = "system"
    name: str = ""
    model: str | None = None

    @property
    def pairs(self) -> int:
        return len(self.ratings)

    def __str__(self) -> str:
        lines = [f"scores of {self.model}"] if self.model else []
        for name, value in self.metrics.items():
            interval = "   [{:.4f}, {:.4f}]".format(*self.intervals[name]) if name in self.intervals else ""
            lines.append(f"{name:<6}{value:8.4f}{interval}")
        lines.append(f"{'N':<6}{self.pairs:8d}")
        if "MSE" not in self.metrics:
            lines.append("no MSE: the scores are cosines, not ratings")
        return "\n".join(lines + ([f"\n{self.systems_table()}"] if self.systems else []))

    def systems_table(self) -> str:
        """A line for each system, or value of the other column."""
        width = max(map(len, [*self.systems, self.grouped_by])) + 2
        lines = [f"{self.grouped_by:<{width}}{'clips':>6}{'SRCC':>9}{'predicted':>11}{'rated':>8}"]
        for name, row in self.systems.items():
            lines.append(f"{name:<{width}}{row['clips']:6.0f}{row['SRCC']:9.4f}{row['predicted']:11.3f}{row['rated']:8.3f}")
        if self.system_srcc is not None:
            lines.append(f"{self.grouped_by}-level SRCC {self.system_srcc:.4f}")
        return "\n".join(lines)


def evaluate(predictions: Path, ratings: Path, resamples: int = 1000, by: str | None = None) -> Evaluation:
    """
    Args:
        predictions: A table of scores, see [`ScoreFile.predictions`]. `<predictions>.json`, which `xacle score` writes, says
            whether they are ratings or cosines; without it, they are taken for ratings.
        ratings: A table of ratings, see [`ScoreFile.ratings`].
        resamples: Of the bootstrap for the 95 % confidence intervals; 0 for none.
        by: A column of the ratings or, if they have none of that name, of the predictions: results for each of its values.
            By default `model_id`, if the ratings have it.

    Raises:
        FileNotFoundError, ValueError: for tables that cannot be read; if a rated pair has no prediction (its absence would
            make another test set), fewer than two are rated, a clip's caption is not the same in both tables, or neither has
            the column `by`.
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
    made = read_sidecar(predictions)
    names = METRICS[:-1] if made.get("kind") == COSINE else METRICS  # without MSE
    if "MSE" in names and (means.min() < 0 or means.max() > 10):
        logger.warning(
            f"the ratings in '{ratings}' run from {means.min():g} to {means.max():g}, where 0 to 10 is expected: the MSE means "
            "little; rescale them"
        )
    metrics = {name: value for name, value in alignment_metrics(scores, means).items() if name in names}
    evaluation = Evaluation(metrics, scores, means, name=predictions.stem, model=made.get("model"))
    if resamples:
        evaluation.intervals = bootstrap_intervals(scores, means, resamples, names=names)
    column = by or find_column(columns_of(rated_file.rows), MODEL_ID_COLUMNS)
    if column is not None:
        groups = _file_with(column, rated_file, scored_file).groups(column, by_text)
        _add_groups(evaluation, column, [groups[key] for key in rated])
    return evaluation


def _file_with(column: str, *files: ScoreFile) -> ScoreFile:
    """The first of the tables that has a column."""
    for file in files:
        if file.has(column):
            return file
    raise ValueError(f"no column {column} in {' or '.join(repr(str(file.path)) for file in files)}")


def _add_groups(evaluation: Evaluation, column: str, groups: Sequence[str]) -> None:
    """Results of each group of pairs; `""` is none."""
    evaluation.grouped_by = "system" if column in MODEL_ID_COLUMNS else column
    values, scores, means = np.array(groups), evaluation.predictions, evaluation.ratings
    if without := int((values == "").sum()):
        logger.warning(f"{without} of {len(values)} pairs have no {column}; they only count in the total")
    for value in sorted(set(groups) - {""}):
        chosen = values == value
        several = chosen.sum() > 1
        evaluation.systems[value] = {
            "clips": int(chosen.sum()),
            "SRCC": alignment_metrics(scores[chosen], means[chosen])["SRCC"] if several else float("nan"),
            "predicted": float(scores[chosen].mean()),
            "rated": float(means[chosen].mean()),
        }
    if len(evaluation.systems) > 1:
        table = evaluation.systems.values()
        predicted_means, rated_means = [row["predicted"] for row in table], [row["rated"] for row in table]
        evaluation.system_srcc = alignment_metrics(predicted_means, rated_means)["SRCC"]


# --- Several tables of scores of the same pairs --------------------------------------------------------------------------


def evaluate_all(predictions: Sequence[Path], ratings: Path, resamples: int = 1000, by: str | None = None) -> list[Evaluation]:
    """[`evaluate`] for several tables of scores, under names that make them differ; each table must have all rated pairs."""
    check_distinct(predictions)
    evaluations = [evaluate(table, ratings, resamples, by) for table in predictions]
    for evaluation, name in zip(evaluations, names_of(predictions), strict=True):
        evaluation.name = name
    return evaluations


def side_by_side(evaluations: Sequence[Evaluation]) -> str:
    """The metrics of several tables, a line each, then their results for each system."""
    labels = [f"{e.name} ({e.model})" if e.model else e.name for e in evaluations]
    width = max(map(len, labels)) + 2
    lines = [f"{f'N {evaluations[0].pairs}':<{width}}" + "".join(f"{name:<24}" for name in METRICS)]
    for label, evaluation in zip(labels, evaluations, strict=True):
        cells = []
        for name in METRICS:
            interval = "  [{:.3f}, {:.3f}]".format(*evaluation.intervals[name]) if name in evaluation.intervals else ""
            cells.append(f"{evaluation.metrics[name]:.4f}{interval}" if name in evaluation.metrics else "-")
        lines.append(f"{label:<{width}}" + "".join(f"{cell:<24}" for cell in cells))
    if any("MSE" not in evaluation.metrics for evaluation in evaluations):
        lines.append("-: the scores are cosines, not ratings")
    lines = [line.rstrip() for line in lines]
    for evaluation in evaluations:
        lines += [f"\n{evaluation.name}:\n{evaluation.systems_table()}"] if evaluation.systems else []
    return "\n".join(lines)


def write_evaluation(output: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write `metric,value` rows in the challenge's order: SRCC, LCC, KTAU, MSE, N.

    Of several tables, the columns of values have their names; where one has no MSE, its cell is empty. With one table of
    cosines, there is no row for it.
    """
    names = [name for name in METRICS if any(name in evaluation.metrics for evaluation in evaluations)]
    rows = [[name, *(evaluation.metrics.get(name) for evaluation in evaluations)] for name in names]
    rows.append(["N", *(evaluation.pairs for evaluation in evaluations)])
    values = [evaluation.name for evaluation in evaluations] if len(evaluations) > 1 else ["value"]
    write_rows(output, ["metric", *values], rows)


def scatter_plot(output: Path, evaluations: Sequence[Evaluation]) -> None:
    """Predictions against ratings as a picture (png, pdf, svg), a panel for each table of scores. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(evaluations), 5), layout="constrained")
    for axes, evaluation in zip(figure.subplots(1, len(evaluations), squeeze=False)[0], evaluations, strict=True):
        axes.scatter(evaluation.ratings, evaluation.predictions, s=8, alpha=0.4, linewidths=0)
        axes.set_xlabel("mean human rating")
        axes.set_ylabel("predicted score" if "MSE" in evaluation.metrics else "cosine")
        name = f"{evaluation.name}: " if len(evaluations) > 1 else ""
        metrics = evaluation.metrics
        axes.set_title(f"{name}SRCC {metrics['SRCC']:.3f}, LCC {metrics['LCC']:.3f}, N {evaluation.pairs}")
        axes.grid(alpha=0.3)
    save_plot(figure, output)
