"""The XACLE metrics: SRCC (the main one), LCC, KTAU and MSE between predicted scores and human ratings."""

import warnings

import numpy as np
from scipy import stats

METRICS = ("SRCC", "LCC", "KTAU", "MSE")


def alignment_metrics(predictions, ratings) -> dict[str, float]:
    """
    Args:
        predictions, ratings: `[pairs]`, at least two, finite.

    Returns:
        `SRCC` (Spearman, ties get their average rank), `LCC` (Pearson), `KTAU` (Kendall's tau-b) and `MSE`, as the
        challenge's evaluator defines them: a correlation with something constant is 0.

    Raises:
        ValueError: if the lists differ in length, have fewer than two entries, or hold NaN or infinite values.
    """
    predictions, ratings = np.asarray(predictions, dtype=np.float64), np.asarray(ratings, dtype=np.float64)
    if predictions.shape != ratings.shape or predictions.ndim != 1 or len(predictions) < 2:
        raise ValueError(f"two lists of at least 2 values are needed, got {predictions.shape} and {ratings.shape}")
    if not (np.isfinite(predictions).all() and np.isfinite(ratings).all()):
        raise ValueError("predictions and ratings must be finite numbers")
    with warnings.catch_warnings():  # constant input, answered below
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        correlations = {
            "SRCC": stats.spearmanr(predictions, ratings).statistic,
            "LCC": stats.pearsonr(predictions, ratings).statistic,
            "KTAU": stats.kendalltau(predictions, ratings).statistic,
        }
    metrics = {name: 0.0 if np.isnan(value) else float(value) for name, value in correlations.items()}
    return {**metrics, "MSE": float(np.mean((predictions - ratings) ** 2))}


def bootstrap_intervals(predictions, ratings, resamples: int = 1000, confidence: float = 0.95, seed: int = 0):
    """Percentile bootstrap over pairs: `{metric: (low, high)}` for every metric, from the same resamples.

    Args:
        predictions, ratings: As for [`alignment_metrics`].
        resamples: How often pairs are drawn with replacement.
    """
    predictions, ratings = np.asarray(predictions, dtype=np.float64), np.asarray(ratings, dtype=np.float64)
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        chosen = generator.integers(len(predictions), size=len(predictions))
        draws.append([alignment_metrics(predictions[chosen], ratings[chosen])[name] for name in METRICS])
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return {name: (float(low[index]), float(high[index])) for index, name in enumerate(METRICS)}
