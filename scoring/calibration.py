"""From scores that only rank to ratings: an affine map, so that ranks stay."""

import numpy as np


def fit_affine(scores, ratings) -> tuple[float, float]:
    """The `(scale, shift)` for which `shift + scale * score` has the least squared error.

    Args:
        scores, ratings: `[pairs]`, at least two, of pairs the model was not trained on.

    Raises:
        ValueError: if the scores do not rise with the ratings, so that no positive scale fits.
    """
    scores, ratings = np.asarray(scores, dtype=np.float64), np.asarray(ratings, dtype=np.float64)
    if scores.shape != ratings.shape or scores.ndim != 1 or len(scores) < 2:
        raise ValueError(f"two lists of at least 2 values are needed, got {scores.shape} and {ratings.shape}")
    deviations = scores - scores.mean()
    variance = float(deviations @ deviations)
    scale = float(deviations @ (ratings - ratings.mean())) / variance if variance > 0 else 0.0
    if not scale > 0:
        raise ValueError("the scores do not rise with the ratings: there is nothing to calibrate")
    return scale, float(ratings.mean() - scale * scores.mean())


def calibrate(config, scores, ratings) -> None:
    """Set `config.score_scale` and `config.score_shift` so that the model's `scores` fit the `ratings` best."""
    scale, shift = fit_affine(scores, ratings)
    config.score_shift = shift + scale * config.score_shift
    config.score_scale = scale * config.score_scale
