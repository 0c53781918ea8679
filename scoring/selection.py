"""`xacle select`: the rows of a table of scores that are worth keeping, and preference pairs made of it.

table --first pass--> a number, a score and a group a row, in an SQLite file --sorted by SQLite, on disk--> rows to keep
table --second pass--> the rows to keep, as they are

Memory does not grow with the table. The SQLite file lies in the folder for temporary files (`TMPDIR`): 20 to 150 bytes a row,
and as much again while it is sorted.
"""

import json
import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from xacle.core.columns import CUT_COLUMNS, FILE_COLUMNS, PREDICTION_COLUMNS, TEXT_COLUMNS, column_of, find_column
from xacle.core.tables import OUTPUT_SUFFIXES, check_output, complete_file, stream_rows, write_rows
from xacle.scoring.score_files import copy_sidecar

PAIR_COLUMNS = ("prompt", "chosen", "rejected", "score_chosen", "score_rejected", "margin")
# ... and, where rows are cuts, chosen_start, chosen_end, rejected_start and rejected_end.
BINS = 20
BLOCK = 10_000  # rows read and stored at once
CACHE_KIB = 32 * 1024  # of SQLite


@dataclass
class SelectionOptions:
    """
    Which rows [`select`] keeps. What is given is applied in this order.

    Args:
        min_score: The least score.
        top, by: The `top` best rows of each value of the column `by`: `"wav_file_name"` and `"text"` under any of their
            names, or another column. Where rows have `start` and `end`, each cut counts as a sound.
        keep: The share, above 0 and up to 1, of the rows left by the above: the best ones, rounded up.
        min_margin: Preference pairs need more than this difference of scores.
        score_column: The column of the scores, if it is not `pred_score`.
        on_error: `"stop"` at a row without a score or group, or `"skip"` and count it.

    Raises:
        ValueError: for values outside their range, and `top` without `by` or the reverse.
    """

    min_score: float | None = None
    top: int | None = None
    by: str | None = None
    keep: float | None = None
    min_margin: float = 0.0
    score_column: str | None = None
    on_error: str = "stop"

    def __post_init__(self):
        if self.on_error not in ("stop", "skip"):
            raise ValueError(f"on_error must be 'stop' or 'skip', got {self.on_error!r}")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ValueError(f"keep is a share, above 0 and up to 1, got {self.keep}")
        if (self.top is None) != (self.by is None):
            raise ValueError("top and by go together: the N best rows of each value of a column")
        if self.top is not None and self.top < 1:
            raise ValueError(f"top must be at least 1, got {self.top}")
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise ValueError(f"min_score must be a number, got {self.min_score}")
        if not (math.isfinite(self.min_margin) and self.min_margin >= 0):
            raise ValueError(f"min_margin must be a number from 0, got {self.min_margin}")


@dataclass
class Selection:
    """
    What [`select`] did.

    Args:
        rows, kept: Of the table.
        dropped: Rows dropped, by reason; what a later reason counts has passed those before.
        bins: `(lowest score, rows, rows kept)` of equal steps from the lowest to the highest score.
        step: The width of the bins.
        pairs: Preference pairs written; `None` if they were not asked for.
        without_pair: Prompts of which none was made, by reason.
    """

    rows: int
    kept: int
    dropped: dict[str, int]
    bins: list[tuple[float, int, int]]
    step: float
    pairs: int | None = None
    without_pair: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        share = f" ({self.kept / self.rows:.1%})" if self.rows else ""
        lines = [f"{self.kept:,} of {self.rows:,} rows kept{share}"]
        lines += [f"{count:>12,}  {reason}" for reason, count in self.dropped.items()]
        most = max((rows for _, rows, _ in self.bins), default=1)
        lines += ["", f"{'score from':>12}{'rows':>12}{'kept':>12}"] if self.bins else []
        for low, rows, kept in self.bins:
            full, part = math.ceil(40 * kept / most), math.ceil(40 * rows / most)
            lines.append(f"{low:>12.3f}{rows:>12,}{kept:>12,}  {'#' * full}{'.' * (part - full)}")
        if self.pairs is not None:
            lines += ["", f"{self.pairs:,} preference pairs"]
            lines += [f"{count:>12,}  {reason}" for reason, count in self.without_pair.items()]
        return "\n".join(lines)


def select(
    table: Path, output: Path | None = None, pairs: Path | None = None, options: SelectionOptions | None = None
) -> Selection:
    """Keep the best rows of a table of scores.

    Args:
        table: CSV, JSONL or Parquet with a column of scores; it is read twice.
        output: Where the rows kept are written, with all their columns, in the table's order. Of equal scores, earlier rows
            are the better ones.
        pairs: Where preference pairs are written: for each caption, the sounds with its highest and its lowest score,
            with the columns `PAIR_COLUMNS` (what TRL's DPO and reward trainers read), in order of their first rows. Of the
            options, those for `min_score` (of the chosen sound), `min_margin` and the column of scores count. Where rows
            are cuts, also `start` and `end` of both.

    Raises:
        FileNotFoundError, ValueError: for a table or output that cannot be used, naming file and line.
    """
    options = options or SelectionOptions()
    check_output(output, [table], OUTPUT_SUFFIXES)
    check_output(pairs, [table, *([output] if output else [])], OUTPUT_SUFFIXES)
    with _database() as database:
        scored = _ScoredTable(database, table, options, with_pairs=pairs is not None)
        report = scored.choose()
        if output is not None:
            scored.write_kept(output)
            copy_sidecar(table, output)
        if pairs is not None:
            report.pairs, report.without_pair = scored.write_pairs(pairs)
    return report


@contextmanager
def _database() -> Iterator[sqlite3.Connection]:
    with TemporaryDirectory(prefix="xacle-select-") as folder:
        database = sqlite3.connect(f"{folder}/scores.db", isolation_level=None)
        try:
            for setting in ("journal_mode=OFF", "synchronous=OFF", "temp_store=FILE", f"cache_size=-{CACHE_KIB}"):
                database.execute(f"PRAGMA {setting}")
            yield database
        finally:
            database.close()


class _ScoredTable:
    """A table's scores in a database: what is read in the first pass, and asked in the second."""

    def __init__(self, database: sqlite3.Connection, table: Path, options: SelectionOptions, with_pairs: bool):
        self.database, self.table, self.options = database, table, options
        self.columns: dict[str, None] = {}
        self.rows = 0
        self.faults: dict[str, int] = {}
        # part: the row's value of `by`. For pairs, the caption, and the sound as JSON: its name, and start and end of a cut.
        database.execute("CREATE TABLE scored (row INTEGER PRIMARY KEY, score REAL, part, prompt, sound)")
        database.execute("BEGIN")
        database.executemany("INSERT INTO scored VALUES (?, ?, ?, ?, ?)", self._scored_rows(with_pairs))
        database.execute("COMMIT")
        if not self.rows:
            raise ValueError(f"'{table}' has no rows")

    def _scored_rows(self, with_pairs: bool) -> Iterator[tuple]:
        names: _Names | None = None
        for number, (line, row) in enumerate(read_table(self.table)):
            if names is None:
                names = _Names.of(row, self.table, self.options, with_pairs)
            self.rows += 1
            self.columns.update(dict.fromkeys(row))
            try:
                yield number, *names.values(row)
            except ValueError as error:
                if self.options.on_error == "stop":
                    advice = "fix it, or pass --on-error skip to drop such rows"
                    raise ValueError(f"'{self.table}', line {line}: {error}; {advice}") from error
                reason = names.fault(row)
                self.faults[reason] = self.faults.get(reason, 0) + 1

    # --- Rows to keep ----------------------------------------------------------------------------------------------------

    def choose(self) -> Selection:
        """Fill the table `kept` with the numbers of the rows to keep, and count."""
        options, dropped, ask = self.options, dict(self.faults), self.database.execute
        least = -math.inf if options.min_score is None else options.min_score
        left = _single(ask("SELECT COUNT(*) FROM scored WHERE score >= ?", [least]))
        if options.min_score is not None:
            dropped[f"below the least score, {options.min_score:g}"] = _single(ask("SELECT COUNT(*) FROM scored")) - left
        if options.top is None:
            best = "SELECT row, score FROM scored WHERE score >= ?"
            ask(f"CREATE TABLE kept AS {best}", [least])
        else:
            ask(
                "CREATE TABLE kept AS SELECT row, score FROM ("
                "SELECT row, score, ROW_NUMBER() OVER (PARTITION BY part ORDER BY score DESC, row) AS place "
                "FROM scored WHERE score >= ?) WHERE place <= ?",
                [least, options.top],
            )
            before, left = left, _single(ask("SELECT COUNT(*) FROM kept"))
            dropped[f"not among the {options.top} best of their {options.by}"] = before - left
        if options.keep is not None:
            before, left = left, int((Decimal(str(options.keep)) * left).to_integral_value(ROUND_CEILING))
            ask("ALTER TABLE kept RENAME TO passed")
            ask("CREATE TABLE kept AS SELECT row, score FROM passed ORDER BY score DESC, row LIMIT ?", [left])
            ask("DROP TABLE passed")
            dropped[f"not in the best {options.keep:.4g} of the rows left"] = before - left
        return Selection(self.rows, left, dropped, *self._histogram())

    def _histogram(self) -> tuple[list[tuple[float, int, int]], float]:
        low, high = self.database.execute("SELECT MIN(score), MAX(score) FROM scored").fetchone()
        if low is None:
            return [], 0.0
        step = (high - low) / BINS or 1.0

        def counts(rows: str) -> dict[int, int]:
            place = f"MIN(CAST((score - ?) / ? AS INTEGER), {BINS - 1})"
            return dict(self.database.execute(f"SELECT {place} AS place, COUNT(*) FROM {rows} GROUP BY place", [low, step]))

        scored, kept = counts("scored"), counts("kept")
        last = BINS if high > low else 1
        return [(low + place * step, scored.get(place, 0), kept.get(place, 0)) for place in range(last)], step

    def write_kept(self, output: Path) -> None:
        """Write the rows to keep. From Parquet to Parquet, columns keep their types."""
        kept = (row for (row,) in self.database.execute("SELECT row FROM kept ORDER BY row"))
        if output.suffix.lower() == self.table.suffix.lower() == ".parquet":
            _filter_parquet(self.table, output, kept)
            return
        columns = list(self.columns)
        write_rows(output, columns, ([row.get(name) for name in columns] for row in _rows_at(self.table, kept)))

    # --- Preference pairs ------------------------------------------------------------------------------------------------

    def write_pairs(self, output: Path) -> tuple[int, dict[str, int]]:
        """Write a pair for each prompt that has one; returns their number, and the prompts without one by reason."""
        without: dict[str, int] = {}
        self.database.execute("CREATE TABLE pairs (row INTEGER PRIMARY KEY, prompt, chosen, rejected, best REAL, worst REAL)")

        def found() -> Iterator[tuple]:
            ordered = self.database.execute("SELECT prompt, row, score, sound FROM scored ORDER BY prompt, score DESC, row")
            for prompt, candidates in groupby(ordered, key=itemgetter(0)):
                best, worst, count = _best_and_worst(candidates)
                if reason := self._no_pair(best, worst, count):
                    without[reason] = without.get(reason, 0) + 1
                else:
                    yield min(best.row, worst.row), prompt, best.sound, worst.sound, best.score, worst.score

        self.database.execute("BEGIN")
        self.database.executemany("INSERT INTO pairs VALUES (?, ?, ?, ?, ?, ?)", found())
        self.database.execute("COMMIT")
        cuts = [f"{role}_{column}" for role in PAIR_COLUMNS[1:3] for column in CUT_COLUMNS if column in self.columns]
        stored = self.database.execute("SELECT prompt, chosen, rejected, best, worst FROM pairs ORDER BY row")
        write_rows(output, [*PAIR_COLUMNS, *cuts], map(_pair_row, stored))
        return _single(self.database.execute("SELECT COUNT(*) FROM pairs")), dict(sorted(without.items()))

    def _no_pair(self, best: "_Candidate", worst: "_Candidate", count: int) -> str | None:
        options = self.options
        if count == 1:
            return "prompts with one sound only"
        if options.min_score is not None and best.score < options.min_score:
            return f"prompts whose best sound is below {options.min_score:g}"
        if best.score - worst.score <= options.min_margin:
            return f"prompts whose scores differ by {options.min_margin:g} or less"
        return None


@dataclass(slots=True)
class _Candidate:
    row: int
    score: float
    sound: str


def _best_and_worst(candidates: Iterator[tuple]) -> tuple[_Candidate, _Candidate, int]:
    """Of rows by falling score: the first, the first of those with the lowest score, and how many sounds there are."""
    best = worst = None
    count = 0
    for _, row, score, sound in candidates:
        best = best or _Candidate(row, score, sound)
        worst = worst if worst and worst.score == score else _Candidate(row, score, sound)
        count += 1
    return best, worst, count


def _pair_row(stored: tuple) -> list:
    prompt, chosen, rejected, best, worst = stored
    (chosen, *chosen_cut), (rejected, *rejected_cut) = json.loads(chosen), json.loads(rejected)
    margin = round(best - worst, 6)  # no digits that float32 has not
    return [prompt, chosen, rejected, best, worst, margin, *chosen_cut, *rejected_cut]


def _single(cursor: sqlite3.Cursor) -> int:
    return cursor.fetchone()[0]


# --- Rows ----------------------------------------------------------------------------------------------------------------


def _as_written(score) -> float:
    """A score as a float64; a float32 becomes what its shortest decimal says, so that Parquet and CSV select the same rows."""
    return float(str(score) if isinstance(score, np.float32) else score)


@dataclass
class _Names:
    """The columns that are read, and what they are read for."""

    score: str
    part: list[str]
    prompt: str | None
    sound: list[str]

    @classmethod
    def of(cls, row: dict, table: Path, options: SelectionOptions, with_pairs: bool) -> "_Names":
        """By the table's first row. Raises `ValueError` for columns that it has not."""
        rows = [(1, row)]
        cuts = [column for column in CUT_COLUMNS if column in row]
        score = column_of(rows, (options.score_column,) if options.score_column else PREDICTION_COLUMNS, table)
        file = find_column(row, FILE_COLUMNS)
        part = []
        if options.by is not None:
            known = next((names for names in (FILE_COLUMNS, TEXT_COLUMNS) if options.by in names), ())
            part = [column_of(rows, (options.by, *known), table)]
            part += cuts if part[0] == file else []
        if not with_pairs:
            return cls(score, part, None, [])
        return cls(score, part, column_of(rows, TEXT_COLUMNS, table), [column_of(rows, FILE_COLUMNS, table), *cuts])

    def values(self, row: dict) -> tuple[float, object, object, str | None]:
        """Score, group, prompt and sound of a row; `ValueError` if one is missing."""
        if reason := self.fault(row):
            raise ValueError(f"{reason}, got {row.get(self.score)!r}" if reason.startswith("no number") else reason)
        part = row[self.part[0]] if len(self.part) == 1 else self.part and [row.get(column) for column in self.part]
        part = part if isinstance(part, (str, int, float)) else json.dumps(part, default=str)
        sound = json.dumps([row.get(column) for column in self.sound], ensure_ascii=False) if self.sound else None
        return _as_written(row[self.score]), part, row[self.prompt] if self.prompt else None, sound

    def fault(self, row: dict) -> str | None:
        """Why a row cannot be used."""
        if None in row:
            return "more fields than the header has"
        try:
            number = float(row.get(self.score))
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            return f"no number in {self.score}"
        for column in (*self.part[:1], *([self.prompt] if self.prompt else []), *self.sound[:1]):
            if row.get(column) in (None, ""):
                return f"no {column}"
        return None


def read_table(table: Path) -> Iterator[tuple[int, dict]]:
    """CSV, JSONL or Parquet -> `(line or row number, row)`, one by one; see [`stream_rows`]."""
    if table.suffix.lower() != ".parquet" or not table.is_file():
        yield from stream_rows(table)
        return
    number = 0
    for batch in _parquet(table).iter_batches(BLOCK):
        columns = [_cells(column) for column in batch.columns]
        for values in zip(*columns, strict=True):
            number += 1
            yield number, dict(zip(batch.schema.names, values, strict=True))


def _cells(column) -> Sequence:
    """A column's values; float32 stays float32, to be written with its own digits."""
    values = column.to_pylist()
    if str(column.type) != "float":
        return values
    return [None if value is None else np.float32(value) for value in values]


def _parquet(table: Path):
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(table)
    except ArrowInvalid as error:
        raise ValueError(f"'{table}' cannot be read as Parquet ({error})") from error


def _rows_at(table: Path, numbers: Iterator[int]) -> Iterator[dict]:
    """The rows of a table with these numbers, from 0, which must rise."""
    number = next(numbers, None)
    for place, (_, row) in enumerate(read_table(table)):
        if place == number:
            yield row
            number = next(numbers, None)
        if number is None:
            return


def _filter_parquet(table: Path, output: Path, numbers: Iterator[int]) -> None:
    """Copy the rows with these numbers, from 0, which must rise."""
    from pyarrow.parquet import ParquetWriter

    source, start, number = _parquet(table), 0, next(numbers, None)
    with complete_file(output, binary=True) as file, ParquetWriter(file, source.schema_arrow) as writer:
        for batch in source.iter_batches(BLOCK):
            mask = np.zeros(len(batch), dtype=bool)
            while number is not None and number < start + len(batch):
                mask[number - start] = True
                number = next(numbers, None)
            start += len(batch)
            if mask.any():
                writer.write_batch(batch.take(np.flatnonzero(mask)))
