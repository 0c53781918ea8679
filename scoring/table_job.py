"""`xacle score --input`: a table of pairs in, a table of scores out, through interruptions and in several processes.

plan: read and check all rows --> run: score what the journal lacks --> merge: the journals of all processes, in one table
"""

import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from xacle.core.clips import Share, default_workers, same_content
from xacle.core.loading import CLAP_TYPES, check_model_folder, device_of_process, usable_device
from xacle.core.tables import (
    Pair,
    Problem,
    TableError,
    check_output,
    missing_folder,
    read_pairs,
    rejected_file,
    write_problems,
    write_scores,
)
from xacle.scoring.journal import Journal, describe_job, differences, read_journal
from xacle.scoring.score_files import COSINE, RATING, write_sidecar
from xacle.scoring.scorer import Clip, load_scorer


@dataclass
class ScoringOptions:
    """
    How a table is scored.

    Args:
        batch_size, window: See [`Scorer.results`].
        device, dtype, compiled: See [`Scorer.from_pretrained`].
        on_error: `"stop"` raises [`TableError`] before any scoring if the check of the table finds rows that cannot be scored.
            `"skip"` scores the others and writes those, with line numbers and reasons, to `<output>.rejected.csv`.
        workers: Processes that decode files; chosen by the number of clips if `None`.
        share: The part of the table to score, by clips; that of the process under `accelerate launch` and `torchrun` if
            `None`. The process that finishes last writes the output.
        with_text: Whether to write the captions too; always done if clips have several.

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
    model: str | Path, table: Path, audio_dir: Path, output: Path, options: ScoringOptions | None = None
) -> TableReport:
    """Score every row of `table` and write `output`, in the table's order, and `<output>.json`: the model, the kind of scores.

    What is scored stands in `<output>.part` until all is. The same call continues from there after an interruption; if the
    table, its sounds, the model or the settings changed, that file is moved to `<output>.part.old` and all is scored anew.

    Args:
        model: Folder or Hub id of a scorer or any CLAP.
        table, audio_dir: See [`read_pairs`].
        output: `.csv` or `.jsonl`.

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


class TableJob:
    """
    The plan of a table that is to be scored: its checked rows, and this process' share of its clips.

    Args: See [`score_table`], as for what it raises.
    """

    def __init__(self, model: str, table: Path, audio_dir: Path, output: Path, options: ScoringOptions):
        self.model, self.table, self.output, self.options = model, table, output, options
        for written in (output, rejected_file(output)):
            check_output(written, [table])
        self.pairs, self.problems = read_pairs(table, audio_dir)
        self._check_problems(audio_dir)

        device = options.device
        if options.share is None and options.dtype != "int8":
            device = device or device_of_process()
        self.share = options.share or Share.of_environment()
        self.device = usable_device(device, options.dtype)
        self.kind = COSINE if check_model_folder(model, or_clap=True) in CLAP_TYPES else RATING
        sounds = dict.fromkeys(pair.audio for pair in self.pairs)
        settings = {"dtype": options.dtype, "window": options.window, "device": self.device.type}
        self.description = describe_job(table, sounds, model, **settings)
        self.originals = same_content(sounds)

    def _check_problems(self, audio_dir: Path) -> None:
        hint = None if self.pairs else missing_folder(self.problems, audio_dir)
        if self.problems and self.options.on_error == "stop":
            advice = hint or "nothing was scored; fix them, or pass --on-error skip to score the others"
            raise TableError(self.table, self.problems, advice)
        if not self.pairs:
            rejected = rejected_file(self.output)
            write_problems(rejected, self.problems)
            raise TableError(self.table, self.problems, f"{hint or 'no row can be scored'}; all are listed in {rejected}")

    @cached_property
    def clips(self) -> list[Clip]:
        """This process' sounds, each with all its captions, in order of their first row."""
        clips: dict[str | Path, Clip] = {}
        for pair in self.pairs:
            original = self.originals[pair.audio]
            clips.setdefault(original, Clip(original, [])).pairs.append(pair)
        return self.share.take(list(clips.values()))

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
            described, _ = read_journal(self.finished_journal(share))
        except FileNotFoundError:
            return False
        return set(differences(described, self.description)) <= {"sounds"}

    # --- Scoring ---------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Score this process' clips, as far as its journal lacks them. The model is loaded if there is anything to score."""
        if self.is_finished(self.share):
            return
        journal = Journal(self.unfinished_journal, self.description)  # first: it fails at once where it cannot be written
        try:
            self._score_into(journal)
        except BaseException as error:
            journal.close()
            if not journal.scores:
                journal.path.unlink()
            if isinstance(error, KeyboardInterrupt) and journal.scores:
                raise KeyboardInterrupt(
                    f"interrupted; the {len(journal.scores)} rows scored so far are in {journal.path}: the same command "
                    "continues from there"
                ) from error
            raise
        journal.close()
        journal.path.replace(self.finished_journal(self.share))

    def _score_into(self, journal: Journal) -> None:
        options, done = self.options, journal.scores
        left = [Clip(clip.audio, [pair for pair in clip.pairs if pair.line not in done]) for clip in self.clips]
        left = [clip for clip in left if clip.pairs]
        hidden = {"disable": True} if int(os.environ.get("RANK", 0)) > 0 else {}  # else TQDM_DISABLE decides
        with tqdm(total=sum(len(clip.pairs) for clip in self.clips), unit="pair", **hidden) as bar:
            if journal.set_aside is not None:
                moved, changed = journal.set_aside
                bar.write(f"{journal.path} was of another job ({', '.join(changed)} differ): moved to {moved}", sys.stderr)
            if done:
                bar.write(f"{len(done)} rows that were scored before are kept", sys.stderr)
                bar.update(len(done))
            if not left:
                return
            scorer = load_scorer(self.model, str(self.device), options.dtype, options.compiled)
            workers = default_workers(len(self.clips), self.device) if options.workers is None else options.workers
            for result in scorer.results(left, options.batch_size, options.window, workers):
                journal.write(result)
                bar.update()

    # --- Merging ---------------------------------------------------------------------------------------------------------

    def merge(self) -> TableReport:
        """Write the output, if all processes have finished; the last one finds that they have."""
        own = sum(len(clip.pairs) for clip in self.clips)
        unfinished = [share.index for share in self.shares if not self.is_finished(share)]
        if unfinished and self.share.index not in unfinished:
            return TableReport(own, len(self.problems), unfinished)
        journals = [self.finished_journal(share) for share in self.shares]
        try:
            results = {line: result for journal in journals for line, result in read_journal(journal)[1].items()}
        except FileNotFoundError:  # another process that finished just now has put everything together
            return TableReport(own, len(self.problems), [])
        if missing := [pair.line for pair in self.pairs if pair.line not in results]:
            names = ", ".join(map(str, journals))
            raise ValueError(f"{len(missing)} rows, the first in line {missing[0]}, are in none of {names}")

        scored = [pair for pair in self.pairs if not isinstance(results[pair.line], str)]
        rows = ((pair.wav_file_name, pair.text, results[pair.line]) for pair in scored)
        write_scores(self.output, rows, self.options.with_text or self._has_several_captions())
        write_sidecar(self.output, self.model, self.kind)
        failed = (pair for pair in self.pairs if isinstance(results[pair.line], str))
        undecodable = [self._undecodable(pair, results[pair.line]) for pair in failed]
        problems, rejected = self.problems + undecodable, rejected_file(self.output)
        rejected.unlink(missing_ok=True)  # an earlier run's
        if problems:
            write_problems(rejected, problems)
        for journal in journals:
            journal.unlink(missing_ok=True)
        if undecodable and (self.options.on_error == "stop" or not scored):
            others = "row is" if len(scored) == 1 else f"{len(scored)} rows are"
            raise TableError(self.table, problems, f"the other {others} in {self.output}, these also in {rejected}")
        return TableReport(len(scored), len(problems), [])

    def _has_several_captions(self) -> bool:
        captions = {pair.wav_file_name: pair.text for pair in self.pairs}
        return any(captions[pair.wav_file_name] != pair.text for pair in self.pairs)

    def _undecodable(self, pair: Pair, reason: str) -> Problem:
        original = self.originals[pair.audio]
        if pair.audio != original:
            reason = f"'{pair.audio}' holds the same bytes as '{original}': {reason}"
        return Problem(pair.line, reason, pair.row)
