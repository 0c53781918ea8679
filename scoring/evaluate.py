"""`xacle evaluate`: predictions against human ratings."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers.utils import logging

from xacle.core.columns import FILE_COLUMNS, PREDICTION_COLUMNS, RATING_COLUMNS, column_of
from xacle.core.tables import name_of, number_of, read_rows
from xacle.scoring.metrics import METRICS, alignment_metrics, bootstrap_intervals
from xacle.scoring.plots import save_plot

logger = logging.get_logger(__name__)

Key = tuple[str, str | None]  # a pair: its clip, and its caption where clips have several


@dataclass
class Rating:
    """One pair's ratings (or, alone in the list, their mean), and the system that made the clip, if known."""

    ratings: list[float]
    model_id: str | None

    @property
    def mean(self) -> float:
        return float(np.mean(self.ratings))


@dataclass
class Evaluation:
    """What [`evaluate`] finds. `systems` has each system's SRCC over its clips, mean prediction and mean rating."""

    metrics: dict[str, float]
    pairs: int
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    systems: dict[str, dict[str, float]] = field(default_factory=dict)
    system_srcc: float | None = None

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


def lists_captions(rows: list[tuple[int, dict]], file_column: str) -> bool:
    """Whether a clip occurs with several captions, so that its name alone does not say which pair a row is about."""
    first = {}
    return any(first.setdefault(row.get(file_column), row.get("text")) != row.get("text") for _, row in rows)


def _key_of(row: dict, name: str, by_text: bool, table: Path, line: int) -> Key:
    if by_text and not isinstance(row.get("text"), str):
        raise ValueError(
            f"'{table}', line {line}: '{name}' needs its caption, since clips occur with several; add a column text"
        )
    return name, row["text"] if by_text else None


def shown(keys: list[Key]) -> str:
    """The first few of some pairs, for messages."""
    return ", ".join(name if text is None else f"{name} with '{text}'" for name, text in keys[:5])


def read_predictions(path: Path, by_text: bool | None = None) -> dict[Key, float]:
    """CSV or JSONL with `wav_file_name` and `pred_score` -> `{(wav_file_name, text): score}`, in the file's order.

    Args:
        by_text: Whether pairs are told apart by their captions; `text` is `None` in the keys otherwise. By default, if the
            table lists a clip with several.

    Raises:
        FileNotFoundError, ValueError: naming the file and the line, also for a pair that is listed twice.
    """
    rows = read_rows(path)
    file_column, score_column = column_of(rows, FILE_COLUMNS, path), column_of(rows, PREDICTION_COLUMNS, path)
    by_text = lists_captions(rows, file_column) if by_text is None else by_text
    predictions = {}
    for line, row in rows:
        name = name_of(row, file_column, path, line)
        key = _key_of(row, name, by_text, path, line)
        if key in predictions:
            hint = "" if by_text else "; of clips with several captions, the captions are needed in a column text"
            raise ValueError(f"'{path}', line {line}: '{name}' is listed twice; one score a pair is needed{hint}")
        predictions[key] = number_of(row, score_column, path, line)
    return predictions


def read_ratings(path: Path, by_text: bool | None = None) -> dict[Key, Rating]:
    """The challenge's rating files -> `{(wav_file_name, text): Rating}`.

    Args:
        path: CSV or JSONL with `wav_file_name` and `average_score`, or (then averaged a pair) `score` of single listeners;
            `model_id` is read where it exists.
        by_text: See [`read_predictions`].

    Raises:
        FileNotFoundError, ValueError: naming the file and the line, also for a mean rating that is listed twice.
    """
    rows = read_rows(path)
    file_column, score_column = column_of(rows, FILE_COLUMNS, path), column_of(rows, RATING_COLUMNS, path)
    by_text = lists_captions(rows, file_column) if by_text is None else by_text
    ratings: dict[Key, Rating] = {}
    for line, row in rows:
        name = name_of(row, file_column, path, line)
        key = _key_of(row, name, by_text, path, line)
        if key in ratings and score_column != "score":
            raise ValueError(f"'{path}', line {line}: '{name}' is listed twice")
        rating = ratings.setdefault(key, Rating([], row.get("model_id") or None))
        rating.ratings.append(number_of(row, score_column, path, line))
    return ratings


def has_captions(path: Path) -> bool:
    """Whether a table lists a clip with several captions."""
    rows = read_rows(path)
    return lists_captions(rows, column_of(rows, FILE_COLUMNS, path))


def check_same_captions(tables: Sequence[Path]) -> None:
    """Raise `ValueError` if a clip has one caption in one table and another in the next: their rows are of other pairs.

    For tables that list every clip with one caption. Those without captions, and spaces around them, do not matter.
    """
    first: dict[str, tuple[Path, int, str]] = {}
    for table in tables:
        rows = read_rows(table)
        file_column, differing = column_of(rows, FILE_COLUMNS, table), []
        for line, row in rows:
            name, text = row.get(file_column), row.get("text")
            if isinstance(text, str) and text.strip():
                other = first.setdefault(name, (table, line, text))
                differing += [(line, name, text, other)] * (other[2].strip() != text.strip())
        if differing:
            line, name, text, (other_table, other_line, other_text) = differing[0]
            more = f" (and so on: {len(differing)} rows)" if len(differing) > 1 else ""
            raise ValueError(
                f"'{table}', line {line}: '{name}' has the caption '{text}', but in '{other_table}', line {other_line}, "
                f"'{other_text}'{more}; the tables must be of the same pairs"
            )


def evaluate(predictions: Path, ratings: Path, resamples: int = 1000) -> tuple[Evaluation, np.ndarray, np.ndarray]:
    """
    Args:
        predictions: See [`read_predictions`].
        ratings: See [`read_ratings`].
        resamples: Of the bootstrap for the 95 % confidence intervals; 0 for none.

    Returns:
        The evaluation, and the predictions and mean ratings it is of, `[clips]` each, in the order of `ratings`.

    Raises:
        ValueError: if a rated pair has no prediction (its absence would make another test set), fewer than two are rated, or
            a clip's caption is not the same in both tables.
    """
    by_text = has_captions(predictions) or has_captions(ratings)
    if not by_text:
        check_same_captions([ratings, predictions])
    predicted, rated = read_predictions(predictions, by_text), read_ratings(ratings, by_text)
    if missing := [key for key in rated if key not in predicted]:
        raise ValueError(
            f"'{predictions}' lacks {len(missing)} of the {len(rated)} pairs in '{ratings}', among them "
            f"{shown(missing)}; score them all"
        )
    if len(rated) < 2:
        raise ValueError(f"'{ratings}' rates {len(rated)} pair: at least 2 are needed to correlate")
    if unrated := [key for key in predicted if key not in rated]:
        logger.warning(
            f"{len(unrated)} of the {len(predicted)} predictions have no rating in '{ratings}' and are left out, the first "
            f"{shown(unrated[:1])}"
        )
    scores = np.array([predicted[key] for key in rated])
    means = np.array([rating.mean for rating in rated.values()])
    if means.min() < 0 or means.max() > 10:
        logger.warning(
            f"the ratings in '{ratings}' run from {means.min():g} to {means.max():g}, where 0 to 10 is expected: the MSE means "
            "little; rescale them"
        )
    evaluation = Evaluation(alignment_metrics(scores, means), len(rated))
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
    return evaluation, scores, means


def write_evaluation(output: Path, evaluation: Evaluation) -> None:
    """Write `metric,value` rows in the challenge's order: SRCC, LCC, KTAU, MSE, N."""
    with output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["metric", "value"])
        writer.writerows((name, evaluation.metrics[name]) for name in METRICS)
        writer.writerow(["N", evaluation.pairs])


def scatter_plot(output: Path, scores: np.ndarray, ratings: np.ndarray, evaluation: Evaluation) -> None:
    """Predictions against ratings as a picture (png, pdf, svg). Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(ratings, scores, s=8, alpha=0.4, linewidths=0)
    axes.set_xlabel("mean human rating")
    axes.set_ylabel("predicted score")
    axes.set_title(f"SRCC {evaluation.metrics['SRCC']:.3f}, LCC {evaluation.metrics['LCC']:.3f}, N {evaluation.pairs}")
    axes.grid(alpha=0.3)
    save_plot(figure, output)
