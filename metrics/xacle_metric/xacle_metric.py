"""How well predicted scores agree with human ratings: SRCC, LCC, KTAU and MSE, as the XACLE Challenge computes them."""

import warnings

import datasets
import evaluate
import numpy as np
from scipy import stats

DESCRIPTION = "Agreement of predicted audio-text alignment scores with human ratings, as the XACLE Challenge measures it."

INPUTS = """
Args:
    predictions (list of float): Predicted scores, one a pair of sound and caption, at least two.
    references (list of float): The pairs' mean human ratings, in the same order.
Returns:
    SRCC (Spearman), LCC (Pearson), KTAU (Kendall's tau-b) and MSE. A correlation with something constant is 0.
"""


class XacleMetric(evaluate.Metric):
    """See `INPUTS`. Of its own, without the package xacle: a copy of this folder is all that is needed."""

    def _info(self):
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references):
        # Not by MetricInfo's format "numpy", which rounds to float32: other values, other ties.
        predictions, references = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
        if len(predictions) < 2:
            raise ValueError(f"at least 2 pairs are needed, got {len(predictions)}")
        if not (np.isfinite(predictions).all() and np.isfinite(references).all()):
            raise ValueError("predictions and references must be finite numbers")
        with warnings.catch_warnings():  # constant input, answered below
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            correlations = {
                "SRCC": stats.spearmanr(predictions, references).statistic,
                "LCC": stats.pearsonr(predictions, references).statistic,
                "KTAU": stats.kendalltau(predictions, references).statistic,
            }
        results = {name: 0.0 if np.isnan(value) else float(value) for name, value in correlations.items()}
        return {**results, "MSE": float(np.mean((predictions - references) ** 2))}
