"""Tables: every way in (CSV, JSONL, `datasets`), and every way out.

In: rows with their line numbers; pairs to score, checked before any work. Out: CSV or JSONL files that appear when they are
complete. Which names a column may have stands in columns.py.
"""

import csv
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from xacle.audio_xacle import open_sound
from xacle.core.columns import FILE_COLUMNS, PREDICTION_COLUMNS, TEXT_COLUMNS, column_of

TABLE_SUFFIXES = (".csv", ".jsonl")
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
    """

    line: int
    audio: object
    text: str
    wav_file_name: str = ""
    row: dict | None = None


@dataclass
class Problem:
    """A row that cannot be scored, and why."""

    line: int
    reason: str
    row: dict


class TableError(ValueError):
    """A table with rows that cannot be used; lists them all, up to `MAX_LISTED`."""

    MAX_LISTED = 20

    def __init__(self, table: Path | str, problems: list[Problem], advice: str, use: str = "scored"):
        self.problems = problems
        lines = [f"{table}, line {problem.line}: {problem.reason}" for problem in problems[: self.MAX_LISTED]]
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


class TableSource(NamedTuple):
    """A table's name, its rows with their numbers, its folder, and the `datasets` columns its sounds are stored in, if any."""

    name: str
    rows: Iterator[tuple[int, dict]]
    folder: Path | None
    stored: object


def open_table(source) -> TableSource:
    """A CSV or JSONL file, a folder of `datasets.Dataset.save_to_disk`, or a `datasets.Dataset`.

    Raises:
        ValueError: if a folder or object holds anything but one split; also what [`stream_rows`] raises.
    """
    if isinstance(source, (str, Path)):
        source = Path(source)
        if not source.is_dir():
            return TableSource(str(source), stream_rows(source), source.parent, None)
        from datasets import load_from_disk

        folder, source = source, load_from_disk(str(source))
        name = str(folder)
    else:
        name, folder = "the dataset", None
    if not hasattr(source, "column_names") or isinstance(source.column_names, dict):
        raise ValueError(f"{name} must be one `datasets.Dataset` with one split, got a {type(source).__name__}")
    from datasets import Audio

    for column, feature in source.features.items():
        if isinstance(feature, Audio):  # decoded here, by soundfile
            source = source.cast_column(column, Audio(decode=False))
    stored = source.select_columns(["audio"]) if "audio" in source.column_names else None
    return TableSource(name, enumerate(source, start=1), folder, stored)


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


def read_pairs(table: Path, audio_dir: Path) -> tuple[list[Pair], list[Problem]]:
    """Read a table of pairs and check every row and every audio file's header.

    Args:
        table: CSV or JSONL with a file and a text column (see columns.py); others are ignored.
        audio_dir: Where the files are; names may have sub-folders, be absolute, or be http(s) URLs.

    Returns:
        The rows that can be scored and those that cannot, both in the table's order. A fault inside the samples (NaN, a
        damaged block) only shows when a file is decoded.

    Raises:
        FileNotFoundError, ValueError: if the table itself cannot be read or lacks a column.
    """
    rows = read_rows(table)
    file_column = column_of(rows, FILE_COLUMNS, table)
    text_column = column_of(rows, TEXT_COLUMNS, table)
    pairs, problems, sounds = [], [], {}
    for line, row in rows:
        reason = pair_problem(row, file_column, text_column)
        if reason is None:
            name = row[file_column]
            if name not in sounds:  # one path for all of a sound's rows
                audio = locate_audio(name, audio_dir)
                sounds[name] = audio, header_problem(audio)
            audio, reason = sounds[name]
        if reason is None:
            pairs.append(Pair(line, audio, row[text_column], name, row))
        else:
            problems.append(Problem(line, reason, row))
    return pairs, problems


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


def header_problem(audio: str | Path) -> str | None:
    """What is wrong with an audio file by its header; `None` if it looks fine, and for URLs, which are not fetched."""
    if isinstance(audio, str):
        return None
    try:
        with open_sound(audio) as sound:
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
def complete_file(output: Path, errors: str = "strict") -> Iterator[TextIO]:
    """A text file to write that becomes `output` at the end: a killed or failed job leaves no file that looks complete."""
    unfinished = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8", errors=errors, newline="") as file:
            yield file
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)


def write_rows(output: Path, columns: Sequence[str], rows: Iterable[Sequence], errors: str = "strict") -> None:
    """Write rows as CSV or, by `output`'s suffix, JSONL. Values of type `np.float32` are written by [`shortest`].

    Args:
        errors: What becomes of characters that UTF-8 cannot encode, see `open`.
    """
    with complete_file(output, errors) as file:
        if output.suffix.lower() == ".jsonl":
            for row in rows:
                values = (float(shortest(value)) if isinstance(value, np.float32) else value for value in row)
                file.write(json.dumps(dict(zip(columns, values, strict=True)), ensure_ascii=False) + "\n")
        else:
            table = csv.writer(file)
            table.writerow(columns)
            for row in rows:
                table.writerow([shortest(value) if isinstance(value, np.float32) else value for value in row])


def write_scores(output: Path, rows: Iterable[tuple[str, str, float]], with_text: bool = False) -> None:
    """Write rows of `(wav_file_name, text, score)`, CSV or JSONL; the text only if asked for."""
    names, texts, scores = FILE_COLUMNS[:1], TEXT_COLUMNS[:1], PREDICTION_COLUMNS[:1]
    if with_text:
        write_rows(output, names + texts + scores, ((name, text, np.float32(score)) for name, text, score in rows))
    else:
        write_rows(output, names + scores, ((name, np.float32(score)) for name, _, score in rows))


def write_problems(rejected: Path, problems: list[Problem]) -> None:
    """Write rows as they came, with line number and reason in front, as CSV: fix them and score that file.

    The line and reason of rows that were rejected before give way to the new ones.
    """
    columns = list(dict.fromkeys(name for problem in problems for name in problem.row if name is not None))
    columns = [name for name in columns if name not in ("line", "reason")]
    rows = (
        [problem.line, problem.reason, *(problem.row.get(name) for name in columns), *problem.row.get(None, [])]
        for problem in sorted(problems, key=lambda problem: problem.line)
    )
    write_rows(rejected, ["line", "reason", *columns], rows, errors="backslashreplace")
