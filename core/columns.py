"""The names that columns of tables have: the only place to add one. In each tuple, the first name is the one we write.

A table's column is found by [`column_of`] (it must be there) or [`find_column`] (it may be).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# The challenge's files say wav_file_name, its README wave_file_name; the others are usual in Hub datasets.
FILE_COLUMNS = ("wav_file_name", "wave_file_name", "file_name", "path", "audio")
TEXT_COLUMNS = ("text", "caption")
LISTENER_ID_COLUMNS = ("listener_id",)
MODEL_ID_COLUMNS = ("model_id",)  # the system that made a sound
AUDIO_COLUMN = "audio"  # where `datasets` keeps sounds
CUT_COLUMNS = ("start", "end")  # seconds: the cut of a long sound that a row is about

PREDICTION_COLUMNS = ("pred_score", "prediction_score")  # the challenge's name; the authors' code writes the other
AVERAGE_COLUMNS = ("average_score", "average_semantic_alignement_score")  # in the challenge's files, and in its README
LISTENER_COLUMNS = ("score",)  # one listener's rating; the listener is named by listener_id
RATING_COLUMNS = AVERAGE_COLUMNS + LISTENER_COLUMNS
PSEUDO_LABEL_COLUMNS = ("clap_score",)
EVENT_COLUMNS = ("labels",)  # the kinds of events in a sound, separated by ";"

# What a table to train on may have as its label.
LABEL_COLUMNS = {
    "rating": RATING_COLUMNS,
    "pseudo_label": PSEUDO_LABEL_COLUMNS,
    "caption": (),
    "any": RATING_COLUMNS + PSEUDO_LABEL_COLUMNS,
}


@dataclass(frozen=True)
class ColumnNames:
    """
    What a source calls its columns, where that is none of the names above.

    Args:
        audio: The column of sounds, or of their names.
        text: The captions.
        score: The labels to train on: mean ratings, ratings of the listeners named in `listener_id`, or pseudo-labels.
    """

    audio: str | None = None
    text: str | None = None
    score: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        return FILE_COLUMNS if self.audio is None else (self.audio,)

    @property
    def texts(self) -> tuple[str, ...]:
        return TEXT_COLUMNS if self.text is None else (self.text,)

    def labels(self, label: str) -> tuple[str, ...]:
        """The names of a label's column, see `LABEL_COLUMNS`."""
        known = LABEL_COLUMNS[label]
        return (self.score, *known) if known and self.score else known


def find_column(columns: Iterable[str | None], names: tuple[str, ...]) -> str | None:
    """The first of `names` that is among a table's columns; `None` if there is none."""
    columns = set(columns)
    return next((name for name in names if name in columns), None)


def columns_of(rows: list[tuple[int, dict]]) -> set[str]:
    """All columns that any row has: in JSONL, rows may lack some."""
    return {name for _, row in rows for name in row if name is not None}


def column_of(rows: list[tuple[int, dict]], names: tuple[str, ...], table: Path | str) -> str:
    """The first of `names` that the rows have. Raises `ValueError` if there is none."""
    columns = columns_of(rows)
    if found := find_column(columns, names):
        return found
    for character, separator in (("\t", "tabs"), (";", "semicolons")):
        if any(character in column for column in columns):
            raise ValueError(f"'{table}' seems to be separated by {separator}; save it with commas")
    raise ValueError(
        f"'{table}' needs the column {' or '.join(names)}, written exactly so and separated by commas; it has "
        f"{', '.join(map(repr, sorted(columns)))}"
    )
