"""A corpus where it lies: a million rows over 50,000 short sounds in 50 tar shards, scored as they stream, killed on the way.

    python -m benchmarks.corpus                 # a million rows: the better part of an hour on 2 cores
    python -m benchmarks.corpus --rows 20000    # does everything run?

A model that takes no time stands for the scorer, so that what is measured is reading, decoding, cutting, journaling and
writing. Then the same with `kill -9` twice on the way, whose output must be equal byte for byte, and 2,000 rows with a tiny
real model against pairs that are scored alone. The full run writes its section into RESULTS.md.
"""

import argparse
import csv
import io
import json
import multiprocessing
import os
import signal
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile as sf
import torch
from transformers.utils import logging

from xacle.audio_xacle import SAMPLING_RATE
from xacle.benchmarks.bench import SENTENCE
from xacle.benchmarks.measure import in_fresh_process, machine, peak_memory, replace_section, table, target
from xacle.demo.tiny_models import save_tiny_scorer
from xacle.scoring.journal import Journal
from xacle.scoring.malloc import keep_freed_memory
from xacle.scoring.scorer import Scorer
from xacle.scoring.table_job import ScoringOptions, score_table

ROWS, CAPTIONS, SHARDS = 1_000_000, 20, 50
REAL_ROWS, ALONE_ROWS = 2_000, 200
SECONDS = 0.2  # of a sound


def write_corpus(folder: Path, rows: int) -> None:
    """Tar shards of FLAC and JSON, `CAPTIONS` captions a sound; all sounds differ."""
    rng, clips = np.random.default_rng(0), rows // CAPTIONS
    shards = min(SHARDS, clips)
    for shard in range(shards):
        with tarfile.open(folder / f"shard-{shard:03}.tar", "w") as tar:
            for clip in range(shard, clips, shards):
                sound = io.BytesIO()
                sf.write(sound, rng.standard_normal(int(SECONDS * SAMPLING_RATE)) / 10, SAMPLING_RATE, format="FLAC")
                texts = [f"{SENTENCE[: 20 + (clip + 7 * number) % 60]} {clip} {number}" for number in range(CAPTIONS)]
                about = json.dumps({"text": texts}).encode()
                for suffix, content in (("flac", sound.getvalue()), ("json", about)):
                    member = tarfile.TarInfo(f"{clip:06}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def no_ratings(scorer: Scorer, captions: list[str], audio) -> np.ndarray:
    """Numbers that tell captions apart, at once."""
    return np.array([sum(caption[-12:].encode()) % 1000 / 100 for caption in captions], dtype=np.float32)


def score_corpus(folder: Path, output: Path, model: Path) -> dict[str, float]:
    """In a process of its own: all shards, by a model that takes no time."""
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable_progress_bar()
    keep_freed_memory()
    Scorer.from_pretrained(model, device="cpu")  # imports what reading a model needs
    before, start = peak_memory(), time.perf_counter()
    with (
        mock.patch.object(Scorer, "encode", lambda self, fbank: torch.zeros(len(fbank), 100, 896)),
        mock.patch.object(Scorer, "rate", no_ratings),
    ):
        report = score_table(model, str(folder / "*.tar"), None, output, ScoringOptions(device="cpu"))
    return {"rows": report.scored, "wall": time.perf_counter() - start, "before": before, "peak": peak_memory()}


def journaled_rows(part: Path) -> int:
    """How many rows a job has scored so far, by its journal."""
    copy = part.with_name("copy.part")
    copy.write_bytes(part.read_bytes())
    journal = Journal(copy, json.loads(copy.read_bytes().partition(b"\n")[0])["job"])
    journal.close()
    copy.unlink()
    return journal.rows


def kill_after(rows: int, folder: Path, output: Path, model: Path) -> int:
    """Start the job, and kill it once it has scored so many rows; returns how many it had then."""
    part = Path(f"{output}.part")
    process = multiprocessing.get_context("spawn").Process(target=score_corpus, args=(folder, output, model))
    process.start()
    lines, wanted = 0, rows / (64 // CAPTIONS * CAPTIONS)
    while process.is_alive() and lines < wanted:
        time.sleep(0.2)
        lines = part.read_bytes().count(b"\n") if part.exists() else 0
    if not process.is_alive():
        sys.exit("the job had finished before it could be killed: take more --rows")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return journaled_rows(part)


def score_for_real(folder: Path, output: Path, model: Path) -> tuple[int, float]:
    """How many rows of the first shards a tiny real model scored; the largest difference from pairs that are scored alone."""
    shards, rows = [], 0
    for shard in sorted(folder.glob("*.tar")):
        if rows < REAL_ROWS:
            with tarfile.open(shard) as tar:
                rows += CAPTIONS * len(tar.getnames()) // 2
            shards.append(shard)
    score_table(model, shards, None, output, ScoringOptions(device="cpu"))
    with output.open(newline="") as file:
        scored = list(csv.DictReader(file))
    scorer, differences = Scorer.from_pretrained(model, device="cpu"), []
    for row in scored[:: max(1, len(scored) // ALONE_ROWS)]:
        shard, _, member = row["wav_file_name"].partition("/")
        with tarfile.open(folder / f"{shard}.tar") as tar:
            sound = tar.extractfile(member).read()
        differences.append(abs(scorer.score([sound], [row["text"]])[0] - float(row["pred_score"])))
    return len(scored), float(max(differences))


def measure(folder: Path, rows: int) -> str:
    model = save_tiny_scorer(folder / "model")
    shards = folder / "shards"
    shards.mkdir()
    write_corpus(shards, rows)
    found = in_fresh_process(score_corpus, shards, folder / "whole.csv", model)
    killed = [kill_after(rows * part // 10, shards, folder / "killed.csv", model) for part in (3, 6)]
    resumed = in_fresh_process(score_corpus, shards, folder / "killed.csv", model)
    equal = (folder / "whole.csv").read_bytes() == (folder / "killed.csv").read_bytes()
    real, difference = score_for_real(shards, folder / "real.csv", model)
    size = sum(file.stat().st_size for file in shards.iterdir()) / 1e9
    lines = [
        [f"{one['rows']:,}", one["wall"], found["rows"] / one["wall"] if one is found else "", one["peak"], one["before"]]
        for one in (found, resumed)
    ]
    header = ["", "rows", "s", "rows/s", "peak memory, GB", "of it before the first row"]
    parts = [
        f"{rows // CAPTIONS:,} sounds of {SECONDS} s with {CAPTIONS} captions each, in {min(SHARDS, rows // CAPTIONS)} tar "
        f"shards ({size:.2f} GB); a model that takes no time.",
        table(header, [["at one go", *lines[0]], ["the last of three, two killed", *lines[1]]]),
        f"Killed (`kill -9`) with {killed[0]:,} and {killed[1]:,} rows scored; the output is "
        f"{'equal byte for byte' if equal else '**not the same**'}.",
        f"{real:,} rows with a tiny real model: at most {difference:.1e} from pairs that are scored alone.",
        target("memory over the start", max(found["peak"] - found["before"], 0.0), 1, " GB", at_most=True),
    ]
    if not equal or difference > 1e-5:
        sys.exit("\n\n".join(parts))
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--output", type=Path, help="file to write the section into (full: RESULTS.md, fewer rows: none)")
    options = parser.parse_args(argv)
    logging.disable_progress_bar()
    os.environ["TQDM_DISABLE"] = "1"  # of the processes that are started
    with tempfile.TemporaryDirectory() as folder:
        text = f"### A corpus in tar shards\n\n{machine()}.\n\n{measure(Path(folder), options.rows)}"
    print(text)
    output = options.output or (Path(__file__).parent / "RESULTS.md" if options.rows == ROWS else None)
    if output is not None:
        replace_section(output, "corpus", text)


if __name__ == "__main__":
    main()
