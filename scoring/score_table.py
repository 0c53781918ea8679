"""`xacle score --input`: a table of pairs in, a table of scores out."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from xacle.core.clips import same_content
from xacle.core.loading import check_model_folder, usable_device
from xacle.core.tables import Pair, Problem, TableError, check_output, missing_folder, read_pairs, rejected_file, write_problems, write_scores
from xacle.scoring.engine import Clip, Engine
from xacle.scoring.journal import Journal, describe_job, read_journal
from xacle.scoring.scorer import Scorer
from xacle.scoring.shards import Shard, device_of_process

MANY_CLIPS = 64  # from here on files are decoded by processes of their own
MAX_WORKERS = 8


@dataclass
class TableReport:
    """What came of a table: pairs scored, rows rejected, and the shards that must finish before the output is written.

    While there are such shards, the pairs are those of this process' shard.
    """

    scored: int
    rejected: int
    unfinished: list[int]


def score_table(
    model: str,
    table: Path,
    audio_dir: Path,
    output: Path,
    batch_size: int | str = "auto",
    device: str | None = None,
    dtype: str = "float32",
    window: str = "mean",
    on_error: str = "stop",
    workers: int | None = None,
    shard: Shard | None = None,
    compiled: bool = False,
    with_text: bool = False,
) -> TableReport:
    """Score every row of `table` and write `output`, in the table's order.

    What is scored stands in `<output>.part` until all is. The same call goes on from there after an interruption; if the
    table, its sounds, the model or the settings changed, that file is moved to `<output>.part.old` and all is scored anew.

    Args:
        on_error: `"stop"` raises [`TableError`] before any scoring if the check of the table finds rows that cannot be scored.
            `"skip"` scores the others and writes those, with line numbers and reasons, to `<output>.rejected.csv`.
        workers: Processes that decode files; chosen by the number of clips if `None`.
        shard: The part of the table to score, by clips; that of the process under `accelerate launch` and `torchrun` if
            `None`. The shard that finishes last writes `output`.
        with_text: Whether to write the captions too; always done if clips have several.
        The other arguments are those of [`Scorer`] and [`read_pairs`].

    Raises:
        TableError: see `on_error`. Also, once all other rows are scored and written, for faults that only decoding shows
            (with `"stop"`), and if no row could be scored.
        FileNotFoundError, ValueError: for a table, output or model that cannot be used.
        FileExistsError: if another process scores for the same output.
        ChildProcessError, MemoryError: see [`Engine.results`].
    """
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error must be 'stop' or 'skip', got {on_error!r}")
    rejected = rejected_file(output)
    for written in (output, rejected):
        check_output(written, [table])
    if shard is None:
        shard = Shard.of_environment()
        device = device or (None if dtype == "int8" else device_of_process())
    pairs, problems = read_pairs(table, audio_dir)
    hint = None if pairs else missing_folder(problems, audio_dir)
    if problems and on_error == "stop":
        advice = hint or "nothing was scored; mend them, or pass --on-error skip to score the others"
        raise TableError(table, problems, advice)
    if not pairs:
        write_problems(rejected, problems)
        raise TableError(table, problems, f"{hint or 'no row can be scored'}; all are listed in {rejected}")

    device = usable_device(device, dtype)
    check_model_folder(model)
    sounds = dict.fromkeys(pair.audio for pair in pairs)
    job = describe_job(table, sounds, model, dtype=dtype, window=window, device=device.type)
    originals = same_content(sounds)
    clips = group_by_clip(pairs, originals)[shard.index :: shard.count]
    if not shard.is_finished(output, job):
        journal = Journal(shard.part(output), job)  # before the model is loaded: a place that cannot be written shows at once
        load = partial(Scorer.from_pretrained, model, str(device), dtype, compiled)
        workers = default_workers(len(clips), device) if workers is None else workers
        score_clips(load, pairs, clips, journal, batch_size, window, workers)
        journal.path.replace(shard.finished(output))
    own = sum(len(clip.captions) for clip in clips)
    unfinished = [member.index for member in shard.team() if not member.is_finished(output, job)]
    if unfinished and shard.index not in unfinished:
        return TableReport(own, len(problems), unfinished)
    journals = [member.finished(output) for member in shard.team()]
    try:
        results = {line: result for journal in journals for line, result in read_journal(journal)[1].items()}
    except FileNotFoundError:  # another shard that finished just now has put everything together
        return TableReport(own, len(problems), [])
    if missing := [pair.line for pair in pairs if pair.line not in results]:
        raise ValueError(f"{len(missing)} rows, the first in line {missing[0]}, are in none of {', '.join(map(str, journals))}")

    captions = {pair.wav_file_name: pair.text for pair in pairs}  # one of several, if a clip has them
    with_text = with_text or any(captions[pair.wav_file_name] != pair.text for pair in pairs)
    scored = [pair for pair in pairs if not isinstance(results[pair.line], str)]
    write_scores(output, ((pair.wav_file_name, pair.text, results[pair.line]) for pair in scored), with_text)
    late = [
        Problem(pair.line, _reason(results[pair.line], pair.audio, originals[pair.audio]), pair.row)
        for pair in pairs
        if isinstance(results[pair.line], str)
    ]
    problems += late
    rejected.unlink(missing_ok=True)  # an earlier run's
    if problems:
        write_problems(rejected, problems)
    for journal in journals:
        journal.unlink(missing_ok=True)
    if late and (on_error == "stop" or not scored):
        others = "row is" if len(scored) == 1 else f"{len(scored)} rows are"
        raise TableError(table, problems, f"the other {others} in {output}, these also in {rejected}")
    return TableReport(len(scored), len(problems), [])


def _reason(error: str, audio: str | Path, original: str | Path) -> str:
    return error if audio == original else f"'{audio}' holds the same bytes as '{original}': {error}"


def group_by_clip(pairs: list[Pair], originals: dict[str | Path, str | Path]) -> list[Clip]:
    """Pairs -> sounds with all their captions, in order of their first pair.

    Args:
        originals: See [`same_content`].
    """
    clips: dict[str | Path, Clip] = {}
    for number, pair in enumerate(pairs):
        original = originals[pair.audio]
        clips.setdefault(original, Clip(original, [])).captions.append((number, pair.text))
    return list(clips.values())


def score_clips(
    load: Callable[[], Scorer],
    pairs: list[Pair],
    clips: list[Clip],
    journal: Journal,
    batch_size: int | str,
    window: str,
    workers: int,
) -> None:
    """Score what the journal lacks, write it there, and close it. The scorer is loaded if there is anything to score."""
    done = journal.scores
    left = [Clip(clip.audio, [(n, text) for n, text in clip.captions if pairs[n].line not in done]) for clip in clips]
    left = [clip for clip in left if clip.captions]
    hidden = {"disable": True} if int(os.environ.get("RANK", 0)) > 0 else {}  # else TQDM_DISABLE decides
    bar = tqdm(total=sum(len(clip.captions) for clip in clips), unit="pair", **hidden)
    try:
        with bar:
            if journal.set_aside is not None:
                moved, changed = journal.set_aside
                bar.write(f"{journal.path} was of another job ({', '.join(changed)} differ): moved to {moved}", sys.stderr)
            if done:
                bar.write(f"{len(done)} rows that were scored before are kept", sys.stderr)
                bar.update(len(done))
            for number, result in Engine(load(), batch_size, window, workers).results(left) if left else ():
                journal.write(pairs[number], result.score, result.error)
                bar.update()
    except BaseException as error:
        journal.close()
        if not journal.scores:
            journal.path.unlink()
        if isinstance(error, KeyboardInterrupt) and journal.scores:
            raise KeyboardInterrupt(
                f"interrupted; the {len(journal.scores)} rows scored so far are in {journal.path}: the same command goes on "
                "from there"
            ) from error
        raise
    journal.close()


def default_workers(clips: int, device: torch.device) -> int:
    """How many processes decode: none for a few clips; one keeps up with a CPU; for an accelerator, most of the CPU's cores."""
    if clips < MANY_CLIPS:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return 1 if device.type == "cpu" else min(MAX_WORKERS, max(1, share - 1))
