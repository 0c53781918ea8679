"""Are two systems' mean scores different, or is it the prompts? Paired tests over the same prompts."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLED_AT_ONCE = 4_000_000  # scores, 32 MB


@dataclass
class PairedTest:
    """
    One system's scores minus another's on the same prompts.

    Args:
        difference: Mean over prompts; `low` and `high` are its 95 % confidence interval (percentile bootstrap).
        wins, ties, losses: Prompts where the first system's score is higher, equal, lower.
        p_t_test: Two-sided paired t-test.
        p_bootstrap: Two-sided paired bootstrap: how often resampled prompts move the mean difference by as much as it differs
            from 0.
    """

    difference: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    p_t_test: float
    p_bootstrap: float


def bootstrap_means(scores: np.ndarray, resamples: int = 10000, seed: int = 0) -> np.ndarray:
    """Means of all systems over prompts drawn with replacement, the same draws for all.

    Args:
        scores: `[systems, prompts]`.

    Returns:
        `[systems, resamples]`.
    """
    rng = np.random.default_rng(seed)
    systems, prompts = scores.shape
    at_once = max(1, RESAMPLED_AT_ONCE // scores.size)
    means = np.empty((systems, resamples))
    for start in range(0, resamples, at_once):
        chosen = rng.integers(prompts, size=(min(at_once, resamples - start), prompts))
        means[:, start : start + at_once] = scores[:, chosen].mean(axis=2)
    return means


def interval(draws: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap draws `[resamples]`."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def paired_test(first: np.ndarray, second: np.ndarray, draws: np.ndarray) -> PairedTest:
    """
    Args:
        first, second: Scores of two systems `[prompts]`, at least two, in the same order.
        draws: Bootstrap means of their difference `[resamples]`, see [`bootstrap_means`].
    """
    differences = first - second
    difference = float(differences.mean())
    # (1 + ...) counts the sample itself: a p-value of 0 would claim more than the number of resamples can show.
    as_far = np.abs(draws - difference) >= abs(difference) * (1 - 1e-9)  # rounding aside
    return PairedTest(
        difference,
        *interval(draws),
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
        p_t_test=_t_test(differences),
        p_bootstrap=float((1 + as_far.sum()) / (1 + len(draws))),
    )


def _t_test(differences: np.ndarray) -> float:
    if np.ptp(differences) == 0:  # no variance to test against, about which scipy warns
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: list[float]) -> list[float]:
    """Holm's correction for as many comparisons as there are p-values, in the order given (Holm, 1979)."""
    corrected, floor = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        floor = max(floor, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = floor
    return corrected
