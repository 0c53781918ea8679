"""`xacle rank`: several sounds for one caption, the best first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers.utils import logging

from xacle.core.columns import FILE_COLUMNS, PREDICTION_COLUMNS, TEXT_COLUMNS
from xacle.core.tables import write_rows
from xacle.scoring.scorer import Scorer, check_sounds

logger = logging.get_logger(__name__)

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")  # of the sounds in a folder


@dataclass
class Candidate:
    """A sound by its place in the list that was given, with its rank and score, or with why it has none.

    Equal scores share the better rank, as in "1, 2, 2, 4".
    """

    index: int
    score: float | None = None
    rank: int | None = None
    error: Exception | None = None


def best_of_n(
    scorer: Scorer, text: str, audios: Sequence, batch_size: int | str = "auto", window: str = "mean"
) -> list[Candidate]:
    """Rank sounds by how well they match a caption.

    ```python
    best = best_of_n(scorer, "A dog barks", takes)[0]
    keep(takes[best.index], best.score)
    ```

    Args:
        audios: Sounds, as [`Scorer.score`] takes them; arrays of other rates than 16 kHz as `{"array", "sampling_rate"}`.
        batch_size, window: See [`Scorer.score`].

    Returns:
        All candidates: by score, the best first (equal scores in the order given), then those that cannot be scored.

    Raises:
        ValueError: if there are no sounds, or one that is in no list, or the caption is empty.
    """
    check_sounds(audios)
    if len(audios) == 0:
        raise ValueError("there is nothing to rank: no sounds were given")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the caption must be a text, got {text!r}")
    results = scorer.score_each([(audio, text) for audio in audios], batch_size, window)
    candidates = [Candidate(index, result.score, error=result.error) for index, result in enumerate(results)]
    scored = sorted((c for c in candidates if c.error is None), key=lambda candidate: -candidate.score)
    for place, candidate in enumerate(scored):
        tied = place > 0 and candidate.score == scored[place - 1].score
        candidate.rank = scored[place - 1].rank if tied else place + 1
    return scored + [candidate for candidate in candidates if candidate.error is not None]


def sounds_of(paths: Sequence[str]) -> list[str]:
    """Files, URLs and folders -> sounds, each once; a folder stands for the sounds directly in it, by name.

    What else a folder holds is counted in a warning, except hidden files.

    Raises:
        ValueError: if a folder holds no sound.
    """
    sounds = []
    for path in paths:
        if not Path(path).is_dir():
            sounds.append(path)
            continue
        entries = sorted(str(file) for file in Path(path).iterdir() if not file.name.startswith("."))
        found = [entry for entry in entries if entry.lower().endswith(SUFFIXES)]
        if found and (others := [entry for entry in entries if entry not in set(found)]):
            logger.warning(
                f"{len(others)} in the folder '{path}' left out, the first '{others[0]}': of a folder, only the "
                f"{', '.join(SUFFIXES)} directly in it are ranked"
            )
        if not found:
            raise ValueError(f"the folder '{path}' holds no sounds ({', '.join(SUFFIXES)})")
        sounds += found
    return list(dict.fromkeys(sounds))


def ranking_table(sounds: Sequence[str], candidates: Sequence[Candidate]) -> str:
    """The ranks, scores and names of the candidates that have a score, for people."""
    rows = [f"{c.rank:>4}  {c.score:>7.3f}  {sounds[c.index]}" for c in candidates if c.error is None]
    return "\n".join([f"{'rank':>4}  {'score':>7}  sound", *rows])


def write_ranking(output: Path, text: str, sounds: Sequence[str], candidates: Sequence[Candidate]) -> None:
    """Write `rank,wav_file_name,text,pred_score` of the candidates that have a score; `xacle compare` reads it."""
    rows = [(c.rank, sounds[c.index], text, np.float32(c.score)) for c in candidates if c.error is None]
    write_rows(output, ["rank", FILE_COLUMNS[0], TEXT_COLUMNS[0], PREDICTION_COLUMNS[0]], rows)
