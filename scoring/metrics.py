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


def bootstrap_intervals(
    predictions, ratings, resamples: int = 1000, confidence: float = 0.95, seed: int = 0, names: tuple[str, ...] = METRICS
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap over pairs: `{metric: (low, high)}`, all from the same resamples.

    Args:
        predictions, ratings: As for [`alignment_metrics`].
        resamples: How often pairs are drawn with replacement.
        names: The metrics wanted. Without `KTAU` it is some ten times faster.
    """
    predictions, ratings = np.asarray(predictions, dtype=np.float64), np.asarray(ratings, dtype=np.float64)
    generator = np.random.default_rng(seed)
    chosen = np.stack([generator.integers(len(predictions), size=len(predictions)) for _ in range(resamples)])
    first, second = predictions[chosen], ratings[chosen]  # [resamples, pairs]
    draws = {
        "SRCC": lambda: _row_correlations(stats.rankdata(first, axis=1), stats.rankdata(second, axis=1)),
        "LCC": lambda: _row_correlations(first, second),
        "KTAU": lambda: np.nan_to_num([stats.kendalltau(*rows).statistic for rows in zip(first, second, strict=True)]),
        "MSE": lambda: ((first - second) ** 2).mean(axis=1),
    }
    tail = (1 - confidence) / 2
    return {name: tuple(np.quantile(draws[name](), [tail, 1 - tail]).tolist()) for name in names}


def _row_correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each row `[rows, pairs]` with the other's; 0 with a constant one."""
    constant = (np.ptp(first, axis=1) == 0) | (np.ptp(second, axis=1) == 0)
    first, second = (rows - rows.mean(axis=1, keepdims=True) for rows in (first, second))
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return np.where(constant, 0.0, (first * second).sum(axis=1) / np.where(constant, 1.0, scale))
