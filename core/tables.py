"""Tables of pairs to score: read and checked before any work, written in the order they came.

In: CSV or JSONL with `wav_file_name` and `text`. Out: `wav_file_name` and `pred_score` (the XACLE submission format).
"""

import csv
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from xacle.audio_xacle import open_sound
from xacle.core.columns import FILE_COLUMNS, column_of


@dataclass(slots=True)
class Pair:
    """A row that can be scored. `line` is its number in the file, `audio` a path or URL."""

    line: int
    wav_file_name: str
    text: str
    audio: str | Path
    row: dict


@dataclass
class Problem:
    """A row that cannot be scored, and why."""

    line: int
    reason: str
    row: dict


class TableError(ValueError):
    """A table with rows that cannot be used; lists them all, up to `MAX_SHOWN`."""

    MAX_SHOWN = 20

    def __init__(self, table: Path | str, problems: list[Problem], advice: str, use: str = "scored"):
        self.problems = problems
        lines = [f"{table}, line {problem.line}: {problem.reason}" for problem in problems[: self.MAX_SHOWN]]
        if len(problems) > self.MAX_SHOWN:
            lines.append(f"... and {len(problems) - self.MAX_SHOWN} more")
        super().__init__("\n".join([f"rows that cannot be {use}: {len(problems)}", *lines, advice]))


def check_suffix(path: Path) -> None:
    """Raise `ValueError` unless `path` names a CSV or JSONL file."""
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise ValueError(f"'{path}' must end in .csv or .jsonl")


def check_distinct(tables: Sequence[Path]) -> None:
    """Raise `ValueError` if one of `tables` is given twice."""
    files = [table.resolve() for table in tables]
    if twice := [table for place, table in enumerate(tables) if files[place] in files[:place]]:
        raise ValueError(f"the table '{twice[0]}' is given twice")


def check_overwrites_none(output: Path | None, tables: Sequence[Path]) -> None:
    """Raise `ValueError` if `output` is one of the `tables` that are read."""
    if output is not None and output.resolve() in [table.resolve() for table in tables]:
        raise ValueError(f"'{output}' would overwrite a table that is read; choose another --output")


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
    check_suffix(table)
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


def open_table(source) -> tuple[str, Iterator[tuple[int, dict]], Path | None, object]:
    """A table's name, its rows with their numbers, its folder, and the `datasets` columns its sounds are stored in, if any."""
    if isinstance(source, (str, Path)):
        source = Path(source)
        if not source.is_dir():
            return str(source), stream_rows(source), source.parent, None
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
    return name, enumerate(source, start=1), folder, stored


def name_of(row: dict, column: str, table: Path, line: int) -> str:
    """A row's file name. Raises `ValueError`, naming table and line, if it has none."""
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
    """Whether `text` can be encoded: JSON can spell lone surrogates, which neither files nor tokenizers take."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def read_pairs(table: Path, audio_dir: Path) -> tuple[list[Pair], list[Problem]]:
    """Read a table of pairs and check every row and every audio file's header.

    Args:
        table: CSV or JSONL with the columns `wav_file_name` and `text`; others are ignored.
        audio_dir: Where the files are; names may have sub-folders, be absolute, or be http(s) URLs.

    Returns:
        The rows that can be scored and those that cannot, both in the table's order. A fault inside the samples (NaN, a
        damaged block) only shows when a file is decoded.

    Raises:
        FileNotFoundError, ValueError: if the table itself cannot be read or lacks a column.
    """
    rows = read_rows(table)
    file_column = column_of(rows, FILE_COLUMNS, table)
    column_of(rows, ("text",), table)
    pairs, problems, sounds = [], [], {}
    for line, row in rows:
        reason = pair_problem(row, file_column)
        if reason is None:
            name = row[file_column]
            if name not in sounds:  # one path for all of a sound's rows
                audio = locate_audio(name, audio_dir)
                sounds[name] = audio, header_problem(audio)
            audio, reason = sounds[name]
        if reason is None:
            pairs.append(Pair(line, name, row["text"], audio, row))
        else:
            problems.append(Problem(line, reason, row))
    return pairs, problems


def pair_problem(row: dict, file_column: str) -> str | None:
    """Why a row's file name or caption cannot be used; `None` if they can."""
    name, text = row.get(file_column), row.get("text")
    if None in row:
        fields = len(row) - 1
        return f"{fields + len(row[None])} fields where the header has {fields}; put texts with commas in quotes"
    if name in (None, "") or text is None or (isinstance(text, str) and not text.strip()):
        return f"no {file_column}" if name in (None, "") else f"no caption for '{name}'; fill in the text column"
    if not isinstance(name, str) or not isinstance(text, str):
        return f"{file_column} and text must be strings, got {name!r} and {text!r}"
    if not is_unicode(name + text):
        return f"{file_column} or text is no valid Unicode (it holds lone surrogates)"
    return None


def locate_audio(name: str, audio_dir: Path) -> str | Path:
    """Where a table's file is: http(s) URLs as they are, other names under `audio_dir` unless absolute."""
    return name if re.match("https?://", name, re.IGNORECASE) else audio_dir / name


def header_problem(audio: str | Path) -> str | None:
    """What the header of an audio file tells about why it cannot be scored; `None` if it looks fine, and for URLs."""
    if isinstance(audio, str):
        return None
    try:
        with open_sound(audio) as sound:
            return None if sound.frames else f"'{audio}' holds no samples"
    except (OSError, ValueError) as error:
        return str(error)


def missing_folder(problems: list[Problem], audio_dir: Path, option: str = "--audio-dir") -> str | None:
    """What to say where no file of a table is there at all: the folder may be wrong. `None` if other things are wrong too."""
    if problems and all(problem.reason.startswith("no audio file at") for problem in problems):
        return f"no file was found at all: is the audio folder right? It is '{audio_dir}' ({option})"
    return None


def counted(number: int, noun: str) -> str:
    """1 and "row" -> "1 row"; 2 -> "2 rows"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shortest(score: float) -> str:
    """A float32 as the shortest decimal that reads back as the same float32: no ties by rounding, no spurious digits."""
    return np.format_float_positional(np.float32(score), unique=True, trim="0")


def write_scores(output: Path, rows: Iterable[tuple[str, str, float]], with_text: bool = False) -> None:
    """Write rows of `(wav_file_name, text, score)` as CSV or (by `output`'s suffix) JSONL; the text only if asked for.

    `output` appears when it is complete: a killed job leaves no table that looks it.
    """
    unfinished = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    columns = ["wav_file_name", *(["text"] if with_text else []), "pred_score"]
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        is_jsonl = output.suffix.lower() == ".jsonl"
        if not is_jsonl:
            table.writerow(columns)
        for name, text, score in rows:
            row = [name, *([text] if with_text else []), shortest(score)]
            if is_jsonl:
                row[-1] = float(row[-1])
                file.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")
            else:
                table.writerow(row)
    unfinished.replace(output)


def write_problems(rejected: Path, problems: list[Problem]) -> None:
    """Write rows as they came, with line number and reason in front, as CSV: mend them and score that file.

    The line and reason of rows that were rejected before give way to the new ones.
    """
    columns = list(dict.fromkeys(name for problem in problems for name in problem.row if name is not None))
    columns = [name for name in columns if name not in ("line", "reason")]
    with rejected.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["line", "reason", *columns])
        for problem in sorted(problems, key=lambda problem: problem.line):
            fields = [problem.row.get(name) for name in columns]
            writer.writerow([problem.line, problem.reason, *fields, *problem.row.get(None, [])])
