"""Files of scores and of ratings, as evaluating, comparing and ensembles read them, and whose rows are about the same pair."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xacle.core.columns import (
    FILE_COLUMNS,
    LISTENER_COLUMNS,
    PREDICTION_COLUMNS,
    RATING_COLUMNS,
    TEXT_COLUMNS,
    column_of,
    columns_of,
    find_column,
)
from xacle.core.tables import complete_file, name_of, number_of, read_rows

RATING, COSINE = "rating", "cosine"  # kinds of scores: on the scale of ratings, or of CLAPs


class PairKey(NamedTuple):
    """A pair: its clip, and its caption where clips have several."""

    wav_file_name: str
    text: str | None = None

    def __str__(self) -> str:
        return self.wav_file_name if self.text is None else f"{self.wav_file_name} with '{self.text}'"


def first_of(keys: list[PairKey]) -> str:
    """The first few of some pairs, for messages."""
    return ", ".join(map(str, keys[:5]))


@dataclass
class Rating:
    """One pair's ratings or, alone in the list, their mean."""

    ratings: list[float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.ratings))


class ScoreFile:
    """
    A CSV or JSONL file with a file column, scores or ratings, and perhaps captions (see core/columns.py).

    Args:
        rows: Some of its rows; all if `None`.

    Raises:
        FileNotFoundError, ValueError: if it cannot be read or names no files.
    """

    def __init__(self, path: Path, rows: list[tuple[int, dict]] | None = None):
        self.path, self.rows = path, read_rows(path) if rows is None else rows
        self.file_column = column_of(self.rows, FILE_COLUMNS, path)
        self.text_column = find_column(columns_of(self.rows), TEXT_COLUMNS)

    def text(self, row: dict) -> str | None:
        return None if self.text_column is None else row.get(self.text_column)

    @cached_property
    def has_several_captions(self) -> bool:
        """Whether a clip occurs with several captions, so that its name alone does not say which pair a row is about."""
        first = {}
        return any(first.setdefault(row.get(self.file_column), self.text(row)) != self.text(row) for _, row in self.rows)

    def keys(self, by_text: bool) -> Iterator[tuple[int, dict, PairKey]]:
        """Line, row and pair of each row."""
        for line, row in self.rows:
            name, text = name_of(row, self.file_column, self.path, line), self.text(row)
            if by_text and not isinstance(text, str):
                raise ValueError(
                    f"'{self.path}', line {line}: '{name}' needs its caption, since clips occur with several; add a column "
                    f"{TEXT_COLUMNS[0]}"
                )
            yield line, row, PairKey(name, text if by_text else None)

    def predictions(self, by_text: bool | None = None) -> dict[PairKey, float]:
        """The score of each pair, in the file's order.

        Args:
            by_text: Whether pairs are distinguished by their captions; by default, if the file lists a clip with several.

        Raises:
            ValueError: naming the file and the line, also for a pair that is listed twice.
        """
        score_column = column_of(self.rows, PREDICTION_COLUMNS, self.path)
        by_text = self.has_several_captions if by_text is None else by_text
        predictions = {}
        for line, row, key in self.keys(by_text):
            if key in predictions:
                hint = "" if by_text else "; of clips with several captions, the captions are needed in a column text"
                raise ValueError(
                    f"'{self.path}', line {line}: '{key.wav_file_name}' is listed twice; one score a pair is needed{hint}"
                )
            predictions[key] = number_of(row, score_column, self.path, line)
        return predictions

    def ratings(self, by_text: bool | None = None) -> dict[PairKey, Rating]:
        """The ratings of each pair: `average_score`, or `score` of single listeners.

        Args:
            by_text: See [`ScoreFile.predictions`].

        Raises:
            ValueError: naming the file and the line, also for a mean rating that is listed twice.
        """
        score_column = column_of(self.rows, RATING_COLUMNS, self.path)
        by_text = self.has_several_captions if by_text is None else by_text
        ratings: dict[PairKey, Rating] = {}
        for line, row, key in self.keys(by_text):
            if key in ratings and score_column not in LISTENER_COLUMNS:
                raise ValueError(f"'{self.path}', line {line}: '{key.wav_file_name}' is listed twice")
            rating = ratings.setdefault(key, Rating([]))
            rating.ratings.append(number_of(row, score_column, self.path, line))
        return ratings

    def split(self, column: str) -> dict[str, "ScoreFile"]:
        """The rows of each value in a column. Raises `ValueError` if it, or a row's value, is missing."""
        column_of(self.rows, (column,), self.path)
        parts: dict[str, list[tuple[int, dict]]] = {}
        for line, row in self.rows:
            if row.get(column) in (None, ""):
                raise ValueError(f"'{self.path}', line {line}: no {column}")
            parts.setdefault(str(row[column]), []).append((line, row))
        return {value: ScoreFile(self.path, rows) for value, rows in parts.items()}

    def has(self, column: str) -> bool:
        return column in columns_of(self.rows)

    def groups(self, column: str, by_text: bool) -> dict[PairKey, str]:
        """Each pair's value in a column, `""` where it has none.

        Raises:
            ValueError: naming the file and the line, if the rows of a pair (by several listeners) have several values.
        """
        values: dict[PairKey, str] = {}
        for line, row, key in self.keys(by_text):
            value = "" if row.get(column) is None else str(row[column])
            if values.setdefault(key, value) != value:
                raise ValueError(
                    f"'{self.path}', line {line}: '{key}' has the {column} '{value}', but '{values[key]}' in a line before"
                )
        return values


def pairs_by_text(files: Sequence[ScoreFile]) -> bool:
    """Whether the files' pairs are distinguished by their captions: if any of them lists a clip with several.

    Raises:
        ValueError: if none does, and a clip has one caption in one file and another in the next: their rows are of other
            pairs. Missing captions, and spaces around them, do not matter.
    """
    if any(file.has_several_captions for file in files):
        return True
    first: dict[str, tuple[Path, int, str]] = {}
    for file in files:
        differing = []
        for line, row in file.rows:
            name, text = row.get(file.file_column), file.text(row)
            if isinstance(text, str) and text.strip():
                _, _, other_text = first.setdefault(name, (file.path, line, text))
                if other_text.strip() != text.strip():
                    differing.append((line, name, text))
        if differing:
            line, name, text = differing[0]
            other_file, other_line, other_text = first[name]
            more = f" (and so on: {len(differing)} rows)" if len(differing) > 1 else ""
            raise ValueError(
                f"'{file.path}', line {line}: '{name}' has the caption '{text}', but in '{other_file}', line {other_line}, "
                f"'{other_text}'{more}; the tables must be of the same pairs"
            )
    return False


# --- What made the scores ------------------------------------------------------------------------------------------------


def sidecar_of(table: Path) -> Path:
    """The file beside a table of scores that says what they are: `<table>.json`."""
    return table.with_name(table.name + ".json")


def write_sidecar(table: Path, model: str, kind: str) -> None:
    """Write `{"model", "kind"}`: which model made a table's scores, and whether they are ratings or cosines."""
    with complete_file(sidecar_of(table)) as file:
        file.write(json.dumps({"model": model, "kind": kind}, ensure_ascii=False) + "\n")


def read_sidecar(table: Path) -> dict:
    """What [`write_sidecar`] wrote; `{}`, which stands for ratings, if there is none.

    Raises:
        ValueError: if it is damaged.
    """
    sidecar = sidecar_of(table)
    if not sidecar.is_file():
        return {}
    try:
        found = json.loads(sidecar.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{sidecar}', which says what made '{table.name}', is damaged ({error}); delete it") from error
    return found if isinstance(found, dict) else {}


def copy_sidecar(table: Path, output: Path) -> None:
    """Say of a part of a table what is said of the table."""
    if sidecar_of(table).is_file():
        shutil.copyfile(sidecar_of(table), sidecar_of(output))
