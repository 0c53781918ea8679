"""Single listeners' ratings -> one rating a pair.

Optionally screened and standardized as in SPO-CLAPScore (arXiv 2601.02900).
"""

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np


@dataclass
class ListenerRating:
    """One listener's rating (0-10) of one pair."""

    pair: Hashable
    listener: str
    score: float


def pair_ratings(
    ratings: list[ListenerRating], screening: float | None = None, standardization: bool = False
) -> dict[Hashable, float | None]:
    """The mean rating of every pair, in the order pairs first occur.

    Args:
        screening: Keep a rating only if another listener's rating of the same pair lies within so many points (SPO: 5). A
            pair of which none is kept gets `None`. Applied before standardization.
        standardization: Take out each listener's own mean and spread (of a listener who always says the same, only the
            mean) before averaging. The result is put back on the scale of ratings with the mean of the listeners'
            means and the root mean square of their standard deviations.
    """
    pairs: dict[Hashable, list[ListenerRating]] = defaultdict(list)
    for rating in ratings:
        pairs[rating.pair].append(rating)
    if screening is not None:
        pairs = {pair: _agreeing(of_pair, screening) for pair, of_pair in pairs.items()}
    if not standardization:
        return {pair: _mean([rating.score for rating in of_pair]) for pair, of_pair in pairs.items()}

    scores: dict[str, list[float]] = defaultdict(list)
    for of_pair in pairs.values():
        for rating in of_pair:
            scores[rating.listener].append(rating.score)
    means = {listener: np.mean(given) for listener, given in scores.items()}
    # The sample standard deviation, as pandas and SPO's code compute it; a single rating has none.
    stds = {listener: np.std(given, ddof=1) if len(given) > 1 else 0.0 for listener, given in scores.items()}
    stds = {listener: std if std > 0 else 1.0 for listener, std in stds.items()}
    center = np.mean(list(means.values()))
    spread = np.sqrt(np.mean(np.square(list(stds.values()))))
    standardized = {
        pair: [(rating.score - means[rating.listener]) / stds[rating.listener] for rating in of_pair]
        for pair, of_pair in pairs.items()
    }
    return {pair: None if not of_pair else float(center + spread * np.mean(of_pair)) for pair, of_pair in standardized.items()}


def _agreeing(ratings: list[ListenerRating], screening: float) -> list[ListenerRating]:
    """The ratings that another listener comes close to."""
    return [
        rating
        for rating in ratings
        if any(other.listener != rating.listener and abs(other.score - rating.score) <= screening for other in ratings)
    ]


def _mean(scores: list[float]) -> float | None:
    return float(np.mean(scores)) if scores else None
