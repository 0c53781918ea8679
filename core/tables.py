"""Tables: CSV and JSONL in, pairs to score checked, and every way out.

In: rows with their line numbers, and pairs to score. Out: CSV, JSONL or Parquet files that appear when they are complete.
Which names a column may have stands in columns.py; other sources of rows than CSV and JSONL in sources.py.
"""

import csv
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TextIO

import numpy as np

from xacle.audio_xacle import cut_samples, open_sound
from xacle.core.columns import (
    CUT_COLUMNS,
    FILE_COLUMNS,
    PREDICTION_COLUMNS,
    TEXT_COLUMNS,
    ColumnNames,
    column_of,
)

TABLE_SUFFIXES = (".csv", ".jsonl")
OUTPUT_SUFFIXES = (*TABLE_SUFFIXES, ".parquet")
PARQUET_ROWS = 10_000  # written at once
REJECTED_SUFFIX = ".rejected.csv"


@dataclass(slots=True)
class Pair:
    """
    A sound with a caption, to be scored.

    Args:
        line: Its line in the table, or its place in a list.
        audio: Whatever `load_waveform` takes; in a table, a path or URL.
        text: The caption.
        wav_file_name: What the table calls the sound.
        row: The table's row.
        start, end: The cut of the sound that is scored, in seconds; `None` for its beginning and its end.
        part: Which of several files it is from, by number.
    """

    line: int
    audio: object
    text: str
    wav_file_name: str = ""
    row: dict | None = None
    start: float | None = None
    end: float | None = None
    part: int = 0

    @property
    def sound(self):
        """What `load_waveform` takes for the cut."""
        return cut_of(self.audio, self.start, self.end)


def cut_of(audio, start: float | None, end: float | None):
    """A sound, and seconds -> what `load_waveform` takes for this cut of it."""
    if start is None and end is None:
        return audio
    cut = {"start": start, "end": end}
    if isinstance(audio, dict):
        return {**audio, **cut}
    return {"path" if isinstance(audio, (str, Path)) else "bytes": audio, **cut}


@dataclass
class Problem:
    """
    A row that cannot be scored, and why.

    Args:
        line: Its line, or its number.
        reason: What is wrong with it, and how to fix it.
        row: Its columns.
        source: The file or data set it is from, where the table has several or streams.
        part: The number of this file.
    """

    line: int
    reason: str
    row: dict
    source: str | None = None
    part: int = 0

    def __str__(self) -> str:
        unit = "line" if Path(self.source or "").suffix.lower() in TABLE_SUFFIXES else "row"
        return f"{self.source}, {unit} {self.line}: {self.reason}"


class TableError(ValueError):
    """A table with rows that cannot be used; lists them all, up to `MAX_LISTED`."""

    MAX_LISTED = 20

    def __init__(self, table: Path | str, problems: list[Problem], advice: str, use: str = "scored"):
        self.problems = problems
        lines = [
            str(problem) if problem.source else f"{table}, line {problem.line}: {problem.reason}"
            for problem in problems[: self.MAX_LISTED]
        ]
        if len(problems) > self.MAX_LISTED:
            lines.append(f"... and {len(problems) - self.MAX_LISTED} more")
        super().__init__("\n".join([f"rows that cannot be {use}: {len(problems)}", *lines, advice]))


def check_distinct(tables: Sequence[Path]) -> None:
    """Raise `ValueError` if one of `tables` is given twice."""
    files = [table.resolve() for table in tables]
    if twice := [table for place, table in enumerate(tables) if files[place] in files[:place]]:
        raise ValueError(f"the table '{twice[0]}' is given twice")


# --- Rows ----------------------------------------------------------------------------------------------------------------


def stream_rows(table: Path) -> Iterator[tuple[int, dict]]:
    """CSV (with a header) or JSONL -> `(line number, row)`, one by one. Fields beyond a CSV's header stand under `None`.

    Raises:
        FileNotFoundError, IsADirectoryError: if there is no such table.
        ValueError: if it is in another format, a column has another's name, or a line cannot be parsed.
    """
    if table.is_dir():
        raise IsADirectoryError(f"'{table}' is a folder, not a table (.csv, .jsonl)")
    if not table.is_file():
        raise FileNotFoundError(f"no table at '{table}'")
    _check_suffix(table, TABLE_SUFFIXES)
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            yield from _stream_csv(file, table) if table.suffix.lower() == ".csv" else _stream_jsonl(file, table)
    except UnicodeDecodeError as error:
        raise ValueError(f"'{table}' is not UTF-8 text ({error}); save it as UTF-8") from error


def read_rows(table: Path) -> list[tuple[int, dict]]:
    """All of [`stream_rows`]; `ValueError` if there are none."""
    rows = list(stream_rows(table))
    if not rows:
        raise ValueError(f"'{table}' has no rows")
    return rows


def _stream_csv(file: TextIO, table: Path) -> Iterator[tuple[int, dict]]:
    reader = csv.DictReader(file, strict=True)
    try:
        names = [name for name in reader.fieldnames or () if name]
        if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ValueError(f"'{table}', line 1: the column {repeated[0]} occurs twice; rename or remove one")
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"'{table}', after line {reader.line_num}: {error}; is a quote opened and never closed?") from error


def _stream_jsonl(file: TextIO, table: Path) -> Iterator[tuple[int, dict]]:
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"'{table}', line {line}: {error.msg} at character {error.pos}; JSONL has one object a line"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f'\'{table}\', line {line}: expected an object like {{"wav_file_name": ..., "text": ...}}')
        yield line, row


def name_of(row: dict, column: str, table: Path, line: int) -> str:
    """A row's file name, or another text it must have. Raises `ValueError`, naming table and line, if it has none."""
    name = row.get(column)
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"'{table}', line {line}: no {column}, got {name!r}")
    return name


def number_of(row: dict, column: str, table: Path, line: int) -> float:
    """A row's finite number. Raises `ValueError`, naming table and line, if it is none."""
    try:
        number = float(row[column])
    except (KeyError, TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"'{table}', line {line}: {column} must be a number, got {row.get(column)!r}")
    return number


def is_unicode(text: str) -> bool:
    """Whether `text` can be encoded: JSON can hold lone surrogates, which neither files nor tokenizers take."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


# --- Pairs to score ------------------------------------------------------------------------------------------------------


def read_pairs(table: Path, audio_dir: Path, names: ColumnNames | None = None) -> tuple[list[Pair], list[Problem]]:
    """Read a table of pairs and check every row and every audio file's header.

    Args:
        table: CSV or JSONL with a file and a text column (see columns.py), and perhaps `start` and `end`; others are ignored.
        audio_dir: Where the files are; names may have sub-folders, be absolute, or be http(s) URLs.
        names: What the columns are called.

    Returns:
        The rows that can be scored and those that cannot, both in the table's order. A fault inside the samples (NaN, a
        damaged block) only shows when a file is decoded.

    Raises:
        FileNotFoundError, ValueError: if the table itself cannot be read or lacks a column.
    """
    rows, names = read_rows(table), names or ColumnNames()
    check = PairCheck(column_of(rows, names.files, table), column_of(rows, names.texts, table), audio_dir)
    checked = [check(line, row) for line, row in rows]
    pairs = [pair for pair in checked if isinstance(pair, Pair)]
    return pairs, [problem for problem in checked if isinstance(problem, Problem)]


class PairCheck:
    """
    Checks rows one by one, each sound's header once.

    Args:
        file_column, text_column: The columns of the sounds' names and of the captions.
        audio_dir: Where files are.
    """

    def __init__(self, file_column: str, text_column: str, audio_dir: Path):
        self.file_column, self.text_column, self.audio_dir = file_column, text_column, audio_dir
        self.sounds = {}  # one path for all of a sound's rows

    def __call__(self, line: int, row: dict, sound=None) -> Pair | Problem:
        """
        Args:
            sound: The sound that the row holds; `None` if it names a file.
        """
        start = end = None
        reason = pair_problem(row, self.file_column, self.text_column)
        if reason is None:
            start, end, reason = read_cut(row)
        if reason is None and sound is None:
            key = row[self.file_column], start, end
            if key not in self.sounds:
                located = locate_audio(key[0], self.audio_dir)
                self.sounds[key] = located, header_problem(located, start, end)
            sound, reason = self.sounds[key]
        if reason is not None:
            return Problem(line, reason, row)
        return Pair(line, sound, row[self.text_column], row[self.file_column], row, start, end)


def read_cut(row: dict) -> tuple[float | None, float | None, str | None]:
    """A row's `start` and `end` in seconds, where it has them, and what is wrong with them."""
    seconds = []
    for column in CUT_COLUMNS:
        value = row.get(column)
        try:
            number = None if value in (None, "") else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if number is not None and not math.isfinite(number):
            return None, None, f"{column} must be a number of seconds, got {value!r}"
        seconds.append(number)
    return *seconds, None


def pair_problem(row: dict, file_column: str, text_column: str = TEXT_COLUMNS[0]) -> str | None:
    """Why a row's file name or caption cannot be used; `None` if they can."""
    name, text = row.get(file_column), row.get(text_column)
    if None in row:
        fields = len(row) - 1
        return f"{fields + len(row[None])} fields where the header has {fields}; put texts with commas in quotes"
    if name in (None, ""):
        return f"no {file_column}"
    if text is None or (isinstance(text, str) and not text.strip()):
        return f"no caption for '{name}'; fill in the {text_column} column"
    if not isinstance(name, str) or not isinstance(text, str):
        return f"{file_column} and {text_column} must be strings, got {name!r} and {text!r}"
    if not is_unicode(name + text):
        return f"{file_column} or {text_column} is no valid Unicode (it holds lone surrogates)"
    return None


def locate_audio(name: str, audio_dir: Path) -> str | Path:
    """Where a table's file is: http(s) URLs as they are, other names under `audio_dir` unless absolute."""
    return name if re.match("https?://", name, re.IGNORECASE) else audio_dir / name


def header_problem(audio: str | Path, start: float | None = None, end: float | None = None) -> str | None:
    """What is wrong with an audio file, or a cut of it, by its header; `None` if it looks fine, and for URLs, which are not
    fetched."""
    if isinstance(audio, str):
        return None
    try:
        with open_sound(audio) as sound:
            if start is not None or end is not None:
                cut_samples(sound.frames, sound.samplerate, start, end, str(audio))
            return None if sound.frames else f"'{audio}' holds no samples"
    except (OSError, ValueError) as error:
        return str(error)


def check_sound(audio: str) -> None:
    """Raise `ValueError` if the header of one audio file, before a model is loaded for it, says that it cannot be scored."""
    if problem := header_problem(locate_audio(audio, Path())):
        raise ValueError(problem)


def missing_folder(problems: list[Problem], audio_dir: Path, option: str = "--audio-dir") -> str | None:
    """Advice for a table of which no file exists at all: the folder may be wrong. `None` if other things are wrong too."""
    if problems and all(problem.reason.startswith("no audio file at") for problem in problems):
        return f"no file was found at all: is the audio folder right? It is '{audio_dir}' ({option})"
    return None


# --- Outputs -------------------------------------------------------------------------------------------------------------


def counted(number: int, noun: str) -> str:
    """1 and "row" -> "1 row"; 2 -> "2 rows"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shortest(score: float) -> str:
    """A float32 as the shortest decimal that reads back as the same float32: no ties by rounding, no spurious digits."""
    return np.format_float_positional(np.float32(score), unique=True, trim="0")


def _check_suffix(path: Path, suffixes: Sequence[str]) -> None:
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"'{path}' must end in {' or '.join(suffixes)}")


def check_output(output: Path | None, inputs: Iterable[Path] = (), suffixes: Sequence[str] = TABLE_SUFFIXES) -> None:
    """Check an output file before any work; `None`, for no output, passes.

    Args:
        inputs: Files that are read: none of them may be overwritten.
        suffixes: What the file's name may end in.

    Raises:
        ValueError: if its name ends otherwise, or it would overwrite an input.
        IsADirectoryError, FileNotFoundError: if it is a folder, or its folder does not exist.
    """
    if output is None:
        return
    _check_suffix(output, suffixes)
    if output.is_dir():
        raise IsADirectoryError(f"'{output}' is a folder; name a file to write")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"'{output}' cannot be written: its folder does not exist")
    if overwritten := [path for path in inputs if path.resolve() == output.resolve()]:
        raise ValueError(f"'{output}' would overwrite the input '{overwritten[0]}'; choose another output")


def check_output_folder(folder: str | Path) -> Path:
    """An output folder must be new or empty: nothing of the user's is overwritten."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"'{folder}' exists and is not an empty folder; choose another output")
    return folder


def rejected_file(output: Path) -> Path:
    """Where the rows go that cannot be used: `<output>.rejected.csv`."""
    return output.with_name(output.name + REJECTED_SUFFIX)


@contextmanager
def complete_file(output: Path, errors: str = "strict", binary: bool = False) -> Iterator[IO]:
    """A file to write that becomes `output` at the end: a killed or failed job leaves no file that looks complete."""
    unfinished = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    text = {} if binary else {"encoding": "utf-8", "errors": errors, "newline": ""}
    try:
        with unfinished.open("wb" if binary else "w", **text) as file:
            yield file
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)


def write_rows(output: Path, columns: Sequence[str], rows: Iterable[Sequence], errors: str = "strict") -> None:
    """Write rows as CSV or, by `output`'s suffix, JSONL or Parquet. In text, `np.float32` is written by [`shortest`].

    Args:
        errors: What becomes of characters that UTF-8 cannot encode, see `open`.
    """
    suffix = output.suffix.lower()
    with complete_file(output, errors, binary=suffix == ".parquet") as file:
        if suffix == ".parquet":
            _write_parquet(file, columns, iter(rows))
        elif suffix == ".jsonl":
            for row in rows:
                values = (float(shortest(value)) if isinstance(value, np.float32) else value for value in row)
                file.write(json.dumps(dict(zip(columns, values, strict=True)), ensure_ascii=False) + "\n")
        else:
            table = csv.writer(file)
            table.writerow(columns)
            for row in rows:
                table.writerow([shortest(value) if isinstance(value, np.float32) else value for value in row])


def _write_parquet(file: IO[bytes], columns: Sequence[str], rows: Iterator[Sequence]) -> None:
    """The types of columns are those of the first rows; a column without values there is one of strings."""
    import pyarrow as pa
    from pyarrow import parquet

    def cells(block: list[Sequence]) -> list[list]:
        return [list(column) for column in zip(*block, strict=True)] or [[] for _ in columns]

    block = list(islice(rows, PARQUET_ROWS))
    types = [pa.array(column).type for column in cells(block)]
    types = [pa.string() if pa.types.is_null(kind) else kind for kind in types]
    with parquet.ParquetWriter(file, pa.schema(list(zip(columns, types, strict=True)))) as writer:
        while True:
            arrays = []
            for name, kind, values in zip(columns, types, cells(block), strict=True):
                if pa.types.is_string(kind):
                    values = [value if value is None else str(value) for value in values]
                try:
                    arrays.append(pa.array(values, kind))
                except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                    raise ValueError(f"the column {name} holds values of several types ({error}); write .csv") from error
            writer.write_table(pa.table(arrays, schema=writer.schema))
            if not (block := list(islice(rows, PARQUET_ROWS))):
                return


def write_scores(output: Path, rows: Iterable[tuple[str, str, float]], with_text: bool = False) -> None:
    """Write rows of `(wav_file_name, text, score)`, CSV or JSONL; the text only if asked for."""
    names, texts, scores = FILE_COLUMNS[:1], TEXT_COLUMNS[:1], PREDICTION_COLUMNS[:1]
    if with_text:
        write_rows(output, names + texts + scores, ((name, text, np.float32(score)) for name, text, score in rows))
    else:
        write_rows(output, names + scores, ((name, np.float32(score)) for name, _, score in rows))


def write_problems(rejected: Path, problems: list[Problem]) -> None:
    """Write rows as they came, with line number and reason (and source, if there are several) in front, as CSV: fix them and
    score that file.

    The line and reason of rows that were rejected before give way to the new ones.
    """
    columns = list(dict.fromkeys(name for problem in problems for name in problem.row if name is not None))
    columns = [name for name in columns if name not in ("source", "line", "reason")]
    sourced = any(problem.source for problem in problems)
    if not sourced:
        problems = sorted(problems, key=lambda problem: problem.line)
    front = (([problem.source] if sourced else []) + [problem.line, problem.reason] for problem in problems)
    rows = (
        [*place, *(problem.row.get(name) for name in columns), *problem.row.get(None, [])]
        for place, problem in zip(front, problems, strict=True)
    )
    write_rows(rejected, [*["source"] * sourced, "line", "reason", *columns], rows, errors="backslashreplace")
