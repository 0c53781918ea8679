"""`xacle ensemble`: several systems' scores -> one, by averaging ranks (paper, section on the ensemble)."""

from pathlib import Path

import numpy as np
from scipy import stats

from xacle.core.tables import check_distinct, check_output, write_scores
from xacle.scoring.score_files import ScoreFile, first_of, pairs_by_text

HIGHEST = 10.0  # the ensemble's scores are on the scale of ratings


def rank_average(scores: np.ndarray) -> np.ndarray:
    """Mean of the members' ranks, mapped linearly so that rank 1 is 0 and rank N is 10.

    Args:
        scores: `[members, clips]`. Tied scores of a member share their average rank.

    Returns:
        `[clips]`.

    Raises:
        ValueError: for fewer than two clips, or scores that are not finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] < 2 or not np.isfinite(scores).all():
        raise ValueError(f"finite scores [members, clips] of at least two clips are needed, got {scores.shape}")
    mean_ranks = stats.rankdata(scores, axis=1).mean(axis=0)
    return HIGHEST * (mean_ranks - 1) / (scores.shape[1] - 1)


def ensemble(members: list[Path], output: Path) -> tuple[int, int]:
    """Average the ranks of several prediction files and write `output`, in the first file's order.

    Returns:
        How many pairs there are, and how many of them share their score with another.

    Raises:
        ValueError: for fewer than two members, one that is given twice, or one that lacks a pair another one has (nothing is
            filled in or left out).
    """
    if len(members) < 2:
        raise ValueError("an ensemble needs at least two tables")
    check_output(output, members)
    check_distinct(members)
    files = [ScoreFile(member) for member in members]
    by_text = pairs_by_text(files)
    tables = [file.predictions(by_text) for file in files]
    pairs = list(dict.fromkeys(pair for table in tables for pair in table))
    for member, table in zip(members, tables, strict=True):
        if missing := [pair for pair in pairs if pair not in table]:
            raise ValueError(
                f"'{member}' lacks {len(missing)} of {len(pairs)} pairs, among them {first_of(missing)}; all members must "
                "score the same pairs"
            )
    scores = rank_average(np.array([[table[pair] for pair in pairs] for table in tables]))
    write_scores(output, ((*pair, score) for pair, score in zip(pairs, scores, strict=True)), with_text=by_text)
    return len(pairs), len(pairs) - int((np.unique(scores, return_counts=True)[1] == 1).sum())
