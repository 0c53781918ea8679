"""`xacle score --input`: a source of pairs in, a table of scores out, through interruptions and in several processes.

plan: read and check all rows, or as they stream --> run: score the units that the journal lacks
--> merge: the journals of all processes, in one table
"""

import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from xacle.core.clips import MANY_CLIPS, Share, default_workers
from xacle.core.columns import CUT_COLUMNS, FILE_COLUMNS, PREDICTION_COLUMNS, TEXT_COLUMNS, ColumnNames
from xacle.core.loading import CLAP_TYPES, check_model_folder, device_of_process, usable_device
from xacle.core.sources import kept_columns, open_source
from xacle.core.tables import (
    OUTPUT_SUFFIXES,
    TABLE_SUFFIXES,
    Problem,
    TableError,
    check_output,
    missing_folder,
    rejected_file,
    shortest,
    write_problems,
    write_rows,
)
from xacle.scoring.batching import Batches
from xacle.scoring.blocks import BLOCK_ROWS, BlockKey, StreamPlan, TablePlan
from xacle.scoring.journal import Journal, Unit, describe_job, differences, merged_rows, read_job
from xacle.scoring.score_files import COSINE, RATING, write_sidecar
from xacle.scoring.scorer import LOOKAHEAD, Clip, PairResult, load_scorer


@dataclass
class ScoringOptions:
    """
    How a table is scored.

    Args:
        batch_size, window: See [`Scorer.results`].
        device, dtype, compiled: See [`Scorer.from_pretrained`].
        on_error: `"stop"` raises [`TableError`] before any scoring if the check of the table finds rows that cannot be scored;
            of a source that streams, as soon as there is such a row. `"skip"` scores the others and writes those, with line
            numbers and reasons, to `<output>.rejected.csv`.
        workers: Processes that decode files; chosen by the number of clips if `None`.
        share: The part of the table to score, by clips; that of the process under `accelerate launch` and `torchrun` if
            `None`. The process that finishes last writes the output.
        with_text: Whether to write the captions too; always done if clips have several (of a stream: within a block).
        keep_columns: Other columns to carry through: names, or `"all"`. `start` and `end` always are.
        names: What the source calls its columns.

    Raises:
        ValueError: if `on_error` is neither.
    """

    batch_size: int | str = "auto"
    device: str | None = None
    dtype: str = "float32"
    window: str = "mean"
    on_error: str = "stop"
    workers: int | None = None
    share: Share | None = None
    compiled: bool = False
    with_text: bool = False
    keep_columns: str | Sequence[str] = ()
    names: ColumnNames = field(default_factory=ColumnNames)

    def __post_init__(self):
        if self.on_error not in ("stop", "skip"):
            raise ValueError(f"on_error must be 'stop' or 'skip', got {self.on_error!r}")


@dataclass
class TableReport:
    """What came of a table: pairs scored, rows rejected, and the processes that must finish before the output is written.

    While there are such processes, the pairs are those of this process' share.
    """

    scored: int
    rejected: int
    unfinished: list[int]


def score_table(
    model: str | Path, table, audio_dir: Path | None, output: Path, options: ScoringOptions | None = None
) -> TableReport:
    """Score every row of `table` and write `output`, in the table's order, and `<output>.json`: the model, the kind of scores.

    What is scored stands in `<output>.part` until all is. The same call continues from there after an interruption, to the same
    scores to the bit; if the table, its sounds, the model or the settings changed, that file is moved to `<output>.part.old`
    and all is scored anew.

    Args:
        model: Folder or Hub id of a scorer or any CLAP.
        table: Whatever [`open_source`] takes: a table, or several; Parquet, tar shards, a saved folder, a Hub data set.
        audio_dir: Where the files are that its rows name; the table's own folder if `None`.
        output: `.csv`, `.jsonl` or `.parquet`.

    Raises:
        TableError: see `on_error`. Also, once all other rows are scored and written, for faults that only decoding finds
            (with `"stop"`), and if no row could be scored.
        FileNotFoundError, IsADirectoryError, ValueError: for a table, output or model that cannot be used.
        FileExistsError: if another process scores for the same output.
        ChildProcessError, MemoryError: see [`Scorer.results`].
    """
    job = TableJob(str(model), table, audio_dir, output, options or ScoringOptions())
    job.run()
    return job.merge()


@dataclass
class _OpenUnit:
    """A unit that is being scored: the rows it has so far, and how many it will have."""

    block: BlockKey
    number: int
    size: int
    rows: list[dict] = field(default_factory=list)


class TableJob:
    """
    The plan of a source that is to be scored, and this process' share of it.

    Args: See [`score_table`], as for what it raises.
    """

    def __init__(self, model: str, table, audio_dir: Path | None, output: Path, options: ScoringOptions):
        self.model, self.output, self.options = model, output, options
        outputs = ((output, OUTPUT_SUFFIXES), (rejected_file(output), TABLE_SUFFIXES))
        for written, suffixes in outputs:
            check_output(written, suffixes=suffixes)
        self.source = open_source(table)
        for written, suffixes in outputs:
            check_output(written, self.source.files, suffixes)
        device = options.device
        if options.share is None and options.dtype != "int8":
            device = device or device_of_process()
        self.share = options.share or Share.of_environment()
        self.device = usable_device(device, options.dtype)
        unit_rows = LOOKAHEAD * Batches(options.batch_size, self.device).size
        self.plan = (StreamPlan if self.source.streams else TablePlan)(self.source, audio_dir, options.names, unit_rows)
        self._check_problems(audio_dir)
        self.kind = COSINE if check_model_folder(model, or_clap=True) in CLAP_TYPES else RATING
        settings = {"dtype": options.dtype, "window": options.window, "device": self.device.type}
        if options.names != ColumnNames() or options.keep_columns:
            settings["columns"] = [str(options.names), "all" if options.keep_columns == "all" else list(options.keep_columns)]
        self.description = describe_job(self.source.digest(), self.plan.sounds, model, **settings)
        self.units: deque[_OpenUnit] = deque()

    def _check_problems(self, audio_dir: Path | None) -> None:
        problems = self.plan.problems
        folder = audio_dir or self.source.parts[0].folder
        hint = None if not problems or self.plan.pairs else missing_folder(problems, folder)
        if problems and self.options.on_error == "stop":
            advice = hint or "nothing was scored; fix them, or pass --on-error skip to score the others"
            raise TableError(self.source.name, problems, advice)
        if problems and not self.plan.pairs:
            rejected = rejected_file(self.output)
            write_problems(rejected, problems)
            raise TableError(self.source.name, problems, f"{hint or 'no row can be scored'}; all are listed in {rejected}")

    # --- Journals, one a process -----------------------------------------------------------------------------------------

    @property
    def shares(self) -> list[Share]:
        return [Share(index, self.share.count) for index in range(self.share.count)]

    def finished_journal(self, share: Share) -> Path:
        """Where a process' journal waits for the others."""
        return self.output.with_name(f"{self.output.name}.shard-{share.index}-of-{share.count}")

    @property
    def unfinished_journal(self) -> Path:
        """The journal of what this process has scored so far."""
        whole = self.share.count == 1
        return Path(f"{self.output if whole else self.finished_journal(self.share)}.part")

    def is_finished(self, share: Share) -> bool:
        """Whether a process has scored its share of this job; the sounds' times of change may differ between machines."""
        try:
            described = read_job(self.finished_journal(share))
        except FileNotFoundError:
            return False
        return set(differences(described, self.description)) <= {"sounds"}

    # --- Scoring ---------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Score this process' units, as far as its journal lacks them. The model is loaded if there is anything to score."""
        if self.is_finished(self.share):
            return
        journal = Journal(self.unfinished_journal, self.description)  # first: it fails at once where it cannot be written
        try:
            self._score_into(journal)
        except BaseException as error:
            journal.close()
            if not journal.rows:
                journal.path.unlink()
            if isinstance(error, KeyboardInterrupt) and journal.rows:
                raise KeyboardInterrupt(
                    f"interrupted; the {journal.rows} rows scored so far are in {journal.path}: the same command continues "
                    "from there"
                ) from error
            raise
        journal.close()
        journal.path.replace(self.finished_journal(self.share))

    def _score_into(self, journal: Journal) -> None:
        options = self.options
        hidden = {"disable": True} if int(os.environ.get("RANK", 0)) > 0 else {}  # else TQDM_DISABLE decides
        with tqdm(total=self.plan.total and self.plan.total // self.share.count, unit="pair", **hidden) as bar:
            if journal.set_aside is not None:
                moved, changed = journal.set_aside
                bar.write(f"{journal.path} was of another job ({', '.join(changed)} differ): moved to {moved}", sys.stderr)
            if journal.rows:
                bar.write(f"{journal.rows} rows that were scored before are kept", sys.stderr)
                bar.update(journal.rows)
            clips = self._clips_left(journal)
            if (first := next(clips, None)) is not None:
                scorer = load_scorer(self.model, str(self.device), options.dtype, options.compiled)
                number = MANY_CLIPS if self.plan.total is None else len(self.plan.sounds) // self.share.count
                workers = default_workers(number, self.device) if options.workers is None else options.workers
                for result in scorer.results(chain([first], clips), options.batch_size, options.window, workers):
                    self._add(result, journal)
                    bar.update()
            self._write_complete(journal)

    def _clips_left(self, journal: Journal) -> Iterator[Clip]:
        """The clips of units that the journal lacks, a group a unit; such units are queued for their results."""
        group = 0
        last, done = journal.last, frozenset(journal.done)
        for block in self.plan.blocks(self.share, last):
            if block.problems and self.source.streams and self.options.on_error == "stop":
                raise self._stopped(block.problems, journal)
            if block.problems and not (block.key == last and 0 in done):
                self.units.append(_OpenUnit(block.key, 0, 0, [_error_row(problem) for problem in block.problems]))
            for number, clips in enumerate(block.units, start=1):
                if block.key == last and number in done:
                    continue
                self.units.append(_OpenUnit(block.key, number, sum(len(clip.pairs) for clip in clips)))
                group += 1
                for clip in clips:
                    clip.group = group
                    yield clip

    def _stopped(self, problems: list[Problem], journal: Journal) -> TableError:
        kept = f"the {journal.rows} rows scored so far are kept in {journal.path}; " if journal.rows else ""
        advice = f"{kept}fix them, or pass --on-error skip to score the others: the same command continues from there"
        return TableError(self.source.name, problems, advice)

    def _add(self, result: PairResult, journal: Journal) -> None:
        """Take a result, which is of the first unit that waits for some: units get ready one after the other."""
        pair = result.pair
        self._write_complete(journal)
        if result.error is None:
            row = {
                "part": pair.part,
                "line": pair.line,
                FILE_COLUMNS[0]: pair.wav_file_name,
                TEXT_COLUMNS[0]: pair.text,
                "kept": kept_columns(pair.row, self.options.names, self.options.keep_columns),
                PREDICTION_COLUMNS[0]: float(shortest(result.score)),
            }
        else:
            parts = self.source.parts
            source = parts[pair.part].name if self.source.streams or len(parts) > 1 else None
            problem = self.plan.problem(pair, str(result.error))
            problem.source, problem.part = source, pair.part
            if self.source.streams and self.options.on_error == "stop":
                raise self._stopped([problem], journal)
            row = _error_row(problem)
        self.units[0].rows.append(row)
        self._write_complete(journal)

    def _write_complete(self, journal: Journal) -> None:
        while self.units and len(self.units[0].rows) >= self.units[0].size:
            unit = self.units.popleft()
            journal.write(Unit(unit.block, unit.number, unit.rows))

    # --- Merging ---------------------------------------------------------------------------------------------------------

    def merge(self) -> TableReport:
        """Write the output, if all processes have finished; the last one finds that they have."""
        unfinished = [share.index for share in self.shares if not self.is_finished(share)]
        if unfinished and self.share.index not in unfinished:
            with self.finished_journal(self.share).open("rb") as file:
                own = _Summary([file])
            return TableReport(own.scored, len(own.problems), unfinished)
        paths, journals = [self.finished_journal(share) for share in self.shares], []
        try:
            journals = [path.open("rb") for path in paths]
            return self._merge(paths, journals)
        except FileNotFoundError:
            if len(journals) == len(paths):
                raise
            return TableReport(0, 0, [])  # another process that finished just now has put everything together
        finally:
            for file in journals:
                file.close()

    def _merge(self, paths: list[Path], journals: list[BinaryIO]) -> TableReport:
        found, total = _Summary(journals, BLOCK_ROWS if self.source.streams else None), self.plan.total
        if total is not None and found.scored + len(found.problems) != total:
            lacking = total - found.scored - len(found.problems)
            raise ValueError(f"{lacking} rows are in none of {', '.join(map(str, paths))}")
        if total is None and not found.scored and not found.problems:
            raise ValueError(f"'{self.source.name}' has no rows")
        keep = self.options.keep_columns
        if lacking := [name for name in keep if keep != "all" and found.scored and name not in found.kept]:
            raise ValueError(f"'{self.source.name}' has no column {lacking[0]} to keep (--keep-columns)")
        columns = [FILE_COLUMNS[0]]
        if self.options.with_text or found.several_captions:
            columns.append(TEXT_COLUMNS[0])
        others = [name for name in found.kept if name not in (*columns, TEXT_COLUMNS[0], PREDICTION_COLUMNS[0])]
        others.sort(key=lambda name: name not in CUT_COLUMNS)
        rows = (
            [*(row[name] for name in columns), *(row["kept"].get(name) for name in others), np.float32(row["pred_score"])]
            for row in merged_rows(journals)
            if "error" not in row
        )
        write_rows(self.output, [*columns, *others, PREDICTION_COLUMNS[0]], rows)
        write_sidecar(self.output, self.model, self.kind)
        problems, rejected = found.problems, rejected_file(self.output)
        rejected.unlink(missing_ok=True)  # an earlier run's
        if problems:
            write_problems(rejected, problems)
        for path in paths:
            path.unlink(missing_ok=True)
        undecodable = len(problems) > len(self.plan.problems)
        if undecodable and (self.options.on_error == "stop" or not found.scored):
            others = "row is" if found.scored == 1 else f"{found.scored} rows are"
            raise TableError(self.source.name, problems, f"the other {others} in {self.output}, these also in {rejected}")
        return TableReport(found.scored, len(problems), [])


def _error_row(problem: Problem) -> dict:
    row = {"" if name is None else name: value for name, value in problem.row.items()}  # fields beyond the header
    return {"part": problem.part, "line": problem.line, "error": problem.reason, "row": row, "source": problem.source}


class _Summary:
    """What must be known of all rows before the first is written: how many there are, and what columns they need.

    Args:
        remembered: How many sounds' names are held to see whether they come with several captions; `None` for all.
    """

    def __init__(self, journals: list[BinaryIO], remembered: int | None = None):
        self.scored, self.several_captions = 0, False
        self.problems: list[Problem] = []
        self.kept: dict[str, None] = {}
        captions: dict[str, str] = {}
        for row in merged_rows(journals):
            if "error" in row:
                columns = {name or None: value for name, value in row["row"].items()}
                self.problems.append(Problem(row["line"], row["error"], columns, row["source"]))
                continue
            self.scored += 1
            self.kept.update(dict.fromkeys(row["kept"]))
            name, text = row[FILE_COLUMNS[0]], row[TEXT_COLUMNS[0]]
            if len(captions) >= (remembered or len(captions) + 1):
                captions.clear()
            self.several_captions = self.several_captions or captions.setdefault(name, text) != text
