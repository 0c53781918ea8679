"""Tables of pairs to score: read and checked before any work, written in the order they came.

In: CSV or JSONL with `wav_file_name` and `text`. Out: `wav_file_name` and `pred_score` (the XACLE submission format).
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

# The challenge's files say wav_file_name; its README says wave_file_name.
FILE_COLUMNS = ("wav_file_name", "wave_file_name")


@dataclass
class Pair:
    """A row of a table. `line` is its number in the file, as an editor shows it."""

    line: int
    wav_file_name: str
    text: str
    path: Path


@dataclass
class Problem:
    """What is wrong with a row and how to mend it."""

    line: int
    wav_file_name: str
    text: str
    reason: str


class TableError(ValueError):
    """A table that cannot be scored as it is; lists every problem at once."""

    MAX_SHOWN = 20

    def __init__(self, table: Path, problems: list[Problem]):
        self.problems = problems
        lines = [f"{table}, line {problem.line}: {problem.reason}" for problem in problems[: self.MAX_SHOWN]]
        if len(problems) > self.MAX_SHOWN:
            lines.append(f"... and {len(problems) - self.MAX_SHOWN} more")
        super().__init__("\n".join(lines))


def read_rows(table: Path) -> list[tuple[int, dict]]:
    """CSV (with a header) or JSONL -> `(line number, row)`.

    Raises:
        FileNotFoundError: if there is no such table.
        ValueError: if it is empty, in another format, or a line cannot be parsed.
    """
    if not table.is_file():
        raise FileNotFoundError(f"no table at '{table}'")
    if table.suffix.lower() not in (".csv", ".jsonl"):
        raise ValueError(f"'{table}' must end in .csv or .jsonl")
    rows = []
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            if table.suffix.lower() == ".csv":
                reader = csv.DictReader(file, strict=True)
                for row in reader:
                    rows.append((reader.line_num, row))
            else:
                for line, text in enumerate(file, start=1):
                    if text.strip():
                        row = json.loads(text)
                        if not isinstance(row, dict):
                            raise ValueError(f"'{table}', line {line}: expected an object like {{\"wav_file_name\": ...}}")
                        rows.append((line, row))
    except UnicodeDecodeError as error:
        raise ValueError(f"'{table}' is not UTF-8 text ({error}); save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"'{table}', line {reader.line_num}: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"'{table}', line {line}: {error}; JSONL has one object a line") from error
    if not rows:
        raise ValueError(f"'{table}' has no rows")
    return rows


def read_pairs(table: Path, audio_dir: Path) -> tuple[list[Pair], list[Problem]]:
    """Read a table of pairs and check every row and every audio file's header.

    Args:
        table: CSV or JSONL with the columns `wav_file_name` and `text`.
        audio_dir: Where the files are; names may have sub-folders.

    Returns:
        The rows that can be scored and the problems of those that cannot, both in the table's order.

    Raises:
        FileNotFoundError, ValueError: if the table itself cannot be read or lacks a column.
    """
    rows = read_rows(table)
    columns = {name for _, row in rows for name in row if name is not None}
    file_column = next((name for name in FILE_COLUMNS if name in columns), None)
    if file_column is None or "text" not in columns:
        raise ValueError(f"'{table}' needs the columns wav_file_name and text, it has {', '.join(sorted(columns))}")
    pairs, problems, checked = [], [], {}
    for line, row in rows:
        name, text = row.get(file_column), row.get("text")
        path = audio_dir / str(name)
        if row.get(None):
            reason = f"{len(row) - 1 + len(row[None])} fields where the header has {len(row) - 1}; quote texts with commas"
        elif not isinstance(name, str) or not name.strip():
            reason = f"no {file_column}"
        elif not isinstance(text, str) or not text.strip():
            reason = f"no caption for '{name}'; fill in the text column"
        else:
            if path not in checked:
                checked[path] = audio_problem(path)
            reason = checked[path]
        if reason is None:
            pairs.append(Pair(line, name, text, path))
        else:
            problems.append(Problem(line, str(name or ""), str(text or ""), reason))
    return pairs, problems


def audio_problem(path: Path) -> str | None:
    """What the header of an audio file tells about why it cannot be scored; `None` if it looks fine."""
    if not path.is_file():
        return f"no audio file at '{path}'"
    try:
        frames = sf.info(path).frames
    except (sf.LibsndfileError, OSError) as error:
        return f"cannot decode {path}: {str(error).rstrip('.')}; is it empty, cut off, or no wav, flac, ogg or mp3?"
    return None if frames else f"'{path}' holds no samples"


def shortest(score: float) -> str:
    """A float32 as the shortest decimal that reads back as the same float32: no ties by rounding, no spurious digits."""
    return np.format_float_positional(np.float32(score), unique=True, trim="0")


def write_scores(output: Path, rows: list[tuple[str, float]]) -> None:
    """Write `(wav_file_name, pred_score)` rows as CSV or, if the name ends so, JSONL."""
    with output.open("w", encoding="utf-8", newline="") as file:
        if output.suffix.lower() == ".jsonl":
            for name, score in rows:
                file.write(json.dumps({"wav_file_name": name, "pred_score": float(shortest(score))}, ensure_ascii=False) + "\n")
        else:
            writer = csv.writer(file)
            writer.writerow(["wav_file_name", "pred_score"])
            writer.writerows((name, shortest(score)) for name, score in rows)


def write_problems(output: Path, problems: list[Problem]) -> None:
    """Write rejected rows with line number and reason as CSV."""
    with output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["line", "wav_file_name", "text", "reason"])
        writer.writerows((problem.line, problem.wav_file_name, problem.text, problem.reason) for problem in problems)
