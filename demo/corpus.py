"""A corpus folder in the layout of the XACLE challenge, which the demo reads and generators write.

wav/{train,validation,test}/                     sounds of the rated pairs
meta_data/{train,validation,test}_average.csv    wav_file_name,text,average_score (0-10)
meta_data/{train,validation,test}.csv            optional: wav_file_name,text,score,listener_id
wav/captions/, meta_data/captions.csv            clips with a caption that fits: wav_file_name,text
meta_data/test_captions.csv                      optional, for the report: a caption that fits each test clip
events.csv                                       optional, to train the audio encoder: see `read_events`
corpus.json                                      optional, for the report: see `Corpus.summary`
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xacle.core.columns import (
    AVERAGE_COLUMNS,
    FILE_COLUMNS,
    LISTENER_COLUMNS,
    LISTENER_ID_COLUMNS,
    TEXT_COLUMNS,
    column_of,
)
from xacle.core.tables import name_of, number_of, read_rows, write_rows
from xacle.demo.simulated_listeners import ListenerRating
from xacle.scoring.metrics import alignment_metrics

RATED = ("train", "validation", "test")
PAIR = FILE_COLUMNS[:1] + TEXT_COLUMNS[:1]  # the columns of the tables that are written
AVERAGE = PAIR + AVERAGE_COLUMNS[:1]
LISTENERS = PAIR + LISTENER_COLUMNS + LISTENER_ID_COLUMNS


@dataclass(frozen=True)
class CorpusPair:
    """A clip and a caption. `rating` is the mean of its ratings (0-10), `None` in captions.csv."""

    wav_file_name: str
    text: str
    rating: float | None = None


class Corpus:
    """The tables and sounds of a corpus folder; a `split` is "train", "validation", "test" or "captions"."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def table(self, split: str) -> Path:
        return self.folder / "meta_data" / (f"{split}_average.csv" if split in RATED else f"{split}.csv")

    def audio_dir(self, split: str) -> Path:
        return self.folder / "wav" / split

    def pairs(self, split: str) -> list[CorpusPair]:
        return read_corpus_pairs(self.table(split), rated=split in RATED)

    def sounds(self, split: str) -> list[Path]:
        """The sound of each pair."""
        return [self.audio_dir(split) / pair.wav_file_name for pair in self.pairs(split)]

    def true_captions(self) -> dict[str, str]:
        """A caption that fits each test clip, by file name, in the table's order; empty if the corpus has none."""
        table = self.folder / "meta_data/test_captions.csv"
        return {pair.wav_file_name: pair.text for pair in read_corpus_pairs(table)} if table.is_file() else {}

    def check(self) -> None:
        """Raise `FileNotFoundError` or `ValueError`, naming the table, if a table or a sound is missing."""
        for split in (*RATED, "captions"):
            pairs, sounds = self.pairs(split), self.sounds(split)
            if len(pairs) < 2:
                raise ValueError(f"'{self.table(split)}' has {len(pairs)} rows; at least two are needed")
            if missing := [sound for sound in sounds if not sound.is_file()]:
                raise FileNotFoundError(
                    f"'{self.table(split)}' names {len(missing)} files that are not in '{self.audio_dir(split)}', "
                    f"among them {missing[0].name}"
                )

    def summary(self) -> dict:
        """The number of pairs of each split, and everything in corpus.json.

        corpus.json may hold `about` (sentences about the sounds and captions), `ratings` ("simulated" if no people rated),
        `about_ratings` (sentences), and for each rated split `ratings`, `listeners` and `noise_ceiling_srcc`.
        """
        file = self.folder / "corpus.json"
        known = json.loads(file.read_text()) if file.is_file() else {}
        counts = {split: {"pairs": len(self.pairs(split)), **known.get(split, {})} for split in RATED}
        return {"captions": len(self.pairs("captions")), **known, **counts}


def read_corpus_pairs(table: Path, rated: bool = False) -> list[CorpusPair]:
    """The rows of a table. Raises `FileNotFoundError` or `ValueError` if it is missing, or lacks a column or a value."""
    rows = read_rows(table)
    name, text = column_of(rows, FILE_COLUMNS, table), column_of(rows, TEXT_COLUMNS, table)
    rating = column_of(rows, AVERAGE_COLUMNS, table) if rated else None
    pairs = []
    for line, row in rows:
        mean = number_of(row, rating, table, line) if rated else None
        pairs.append(CorpusPair(name_of(row, name, table, line), name_of(row, text, table, line), mean))
    return pairs


@dataclass
class RatedPair:
    """A pair with ratings of simulated listeners, which they drew from its `agreement` (0-10)."""

    wav_file_name: str
    text: str
    agreement: float
    ratings: list[ListenerRating]

    @property
    def mean(self) -> float:
        return float(np.mean([rating.score for rating in self.ratings]))


def write_ratings(folder: Path, split: str, pairs: list[RatedPair]) -> dict:
    """Write both tables of a rated split: single ratings, and their means.

    Returns:
        What corpus.json says about the split. Its noise ceiling is the SRCC between the agreements and the mean ratings.
    """
    rows = [(pair.wav_file_name, pair.text, one.score, one.listener_id) for pair in pairs for one in pair.ratings]
    means = [pair.mean for pair in pairs]
    write_rows(folder / f"meta_data/{split}.csv", LISTENERS, rows)
    write_rows(
        folder / f"meta_data/{split}_average.csv", AVERAGE, [(pair.wav_file_name, pair.text, pair.mean) for pair in pairs]
    )
    return {
        "pairs": len(pairs),
        "ratings": len(rows),
        "listeners": len({rating.listener_id for pair in pairs for rating in pair.ratings}),
        "mean_rating": round(float(np.mean(means)), 4),
        "noise_ceiling_srcc": round(alignment_metrics([pair.agreement for pair in pairs], means)["SRCC"], 4),
    }
