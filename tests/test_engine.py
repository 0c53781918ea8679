"""Scoring in batches and tables: nothing is computed twice, lost or mixed, and no score depends on how the work is cut."""

import csv
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from xacle.core.clips import Share
from xacle.core.tables import TableError
from xacle.demo.tiny_models import make_sound
from xacle.modeling_beats import BeatsModel
from xacle.scoring.scorer import Scorer
from xacle.scoring.table_job import ScoringOptions, score_table

CAPTIONS = ["Rain", "Rain falls", "A clock ticks once a second", "A siren rises and falls in pitch, again and again"]
XACLE = "import sys; from xacle.cli import main; sys.argv[0] = 'xacle'; main()"


@pytest.fixture(scope="module")
def scorer(tiny_folder):
    return Scorer.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def wav_dir(tmp_path_factory):
    """Ten sounds, one of them in three windows, and a copy of one under another name."""
    folder = tmp_path_factory.mktemp("wav")
    for number in range(8):
        kind = ("rain", "siren", "clock", "engine")[number % 4]
        sf.write(folder / f"{number}.wav", make_sound(kind, 1.0 + number), 16000)
    sf.write(folder / "long.wav", make_sound("rain", 24.0), 16000)
    shutil.copy(folder / "3.wav", folder / "copy.wav")
    return folder


NAMES = [*(f"{number}.wav" for number in range(8)), "long.wav", "copy.wav"]
PAIRS = [(name, caption) for caption in CAPTIONS for name in NAMES]  # a clip's captions stand far apart
WINDOWS = 8 + 3  # distinct ones
ROWS = len(PAIRS) + 2 * len(CAPTIONS)  # the long clip has three windows
CPU_OUT_OF_MEMORY = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."


@pytest.fixture(scope="module")
def expected(scorer, wav_dir) -> np.ndarray:
    """The pairs' scores, each pair scored alone."""
    return np.concatenate([scorer.score([wav_dir / name], [caption]) for name, caption in PAIRS])


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "pairs.csv", PAIRS)


def write_table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("wav_file_name", "text"), *rows])
    return path


def read_scores(path) -> list[float]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["wav_file_name"], row["text"]) for row in rows] == PAIRS
    return [float(row["pred_score"]) for row in rows]


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many windows the encoder was given, call by call."""
    counts, forward = [], BeatsModel.forward

    def counting(self, input_features, *args, **kwargs):
        counts.append(len(input_features))
        return forward(self, input_features, *args, **kwargs)

    monkeypatch.setattr(BeatsModel, "forward", counting)
    return counts


# --- Never twice ---------------------------------------------------------------------------------------------------------


def test_a_sound_is_encoded_once_a_job(scorer, wav_dir, expected, encoded):
    audio, text = [wav_dir / name for name, _ in PAIRS], [caption for _, caption in PAIRS]
    np.testing.assert_allclose(scorer.score(audio, text, batch_size=2), expected, atol=1e-5)
    assert sum(encoded) == WINDOWS
    encoded.clear()
    stream = [result.score for result in scorer.score_each(zip(audio, text, strict=True), batch_size=2)]
    np.testing.assert_allclose(stream, expected, atol=1e-5)
    assert sum(encoded) == WINDOWS  # a stream's sounds are remembered for a while


def test_a_tables_sound_is_encoded_once_under_all_its_names(tiny_folder, table, wav_dir, tmp_path, expected, encoded):
    score_table(tiny_folder, table, wav_dir, tmp_path / "scores.csv", ScoringOptions(batch_size=4, device="cpu"))
    np.testing.assert_allclose(read_scores(tmp_path / "scores.csv"), expected, atol=1e-5)
    assert sum(encoded) == WINDOWS
    assert max(encoded) == 4


def test_captions_of_like_length_are_batched(scorer):
    tokens = []
    hook = scorer.model.register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape))
    captions = ["a", " ".join(["rain"] * 60)] * 16
    scorer.score([make_sound("rain", 1.0)] * 32, captions, batch_size=4)
    hook.remove()
    needed = sum(len(row) for caption in captions for row in scorer.processor(text=caption)["input_ids"])
    assert sum(rows * length for rows, length in tokens) == needed  # no padding at all: here it can be avoided
    assert {rows for rows, _ in tokens} == {4}


# --- Workers -------------------------------------------------------------------------------------------------------------


class FatalSound:
    """Kills the process that decodes it."""

    def read(self): ...

    def seekable(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_workers_decode_the_same(scorer, wav_dir, expected):
    audio, text = [wav_dir / name for name, _ in PAIRS], [caption for _, caption in PAIRS]
    np.testing.assert_allclose(scorer.score(audio, text, workers=2), expected, atol=1e-5)
    pairs = [(wav_dir / "0.wav", "Rain"), (wav_dir / "missing.wav", "Rain"), (wav_dir / "1.wav", " ")]
    results = list(scorer.score_each([*pairs, *pairs], workers=2))
    assert [result.error is None for result in results] == [True, False, False] * 2
    assert isinstance(results[1].error, FileNotFoundError) and "missing.wav" in str(results[1].error)


def test_a_worker_that_dies_is_reported(scorer, wav_dir):
    with pytest.raises(ChildProcessError, match=r"a process that decodes files died .*--workers 0"):
        scorer.score([wav_dir / "0.wav", FatalSound(), wav_dir / "1.wav"], ["Rain"] * 3, workers=1)


# --- Precision -----------------------------------------------------------------------------------------------------------


def test_int8_stays_close_and_does_not_depend_on_the_batch(tiny_folder, wav_dir, expected):
    int8 = Scorer.from_pretrained(tiny_folder, dtype="int8")
    assert int8.model.device.type == "cpu"
    audio, text = [wav_dir / name for name, _ in PAIRS], [caption for _, caption in PAIRS]
    scores = int8.score(audio, text)
    np.testing.assert_allclose(scores, expected, atol=0.2)
    assert np.abs(scores - expected).max() > 1e-5
    alone = np.concatenate([int8.score([sound], [caption]) for sound, caption in zip(audio[:9], text[:9], strict=True)])
    np.testing.assert_allclose(scores[:9], alone, atol=1e-5)
    with pytest.raises(ValueError, match="int8 is for CPUs"):
        Scorer.from_pretrained(tiny_folder, device="cuda", dtype="int8")
    with pytest.raises(ValueError, match="int8 model cannot be compiled"):
        Scorer.from_pretrained(tiny_folder, dtype="int8", compiled=True)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_scores_the_same_with_static_shapes(tiny_folder, wav_dir, expected):
    compiled = Scorer.from_pretrained(tiny_folder, device="cpu", compiled=True)
    shapes = set()
    compute = compiled._rate
    compiled._rate = lambda ids, audio: (shapes.add(tuple(ids.shape)), compute(ids, audio))[1]
    audio, text = [wav_dir / name for name, _ in PAIRS], [caption for _, caption in PAIRS]
    np.testing.assert_allclose(compiled.score(audio, text, batch_size=16), expected, atol=1e-5)
    assert shapes <= {(16, 128), (16, 192)}


# --- Memory --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU_OUT_OF_MEMORY)])
def test_auto_batches_shrink_until_they_fit(scorer, wav_dir, expected, monkeypatch, error):
    sizes = []

    def limit(compute):
        def limited(self, inputs, *others):
            if len(inputs) > 3:
                raise error
            sizes.append(len(inputs))
            return compute(self, inputs, *others)

        return limited

    monkeypatch.setattr(Scorer, "encode", limit(Scorer.encode))
    monkeypatch.setattr(Scorer, "rate", limit(Scorer.rate))
    audio, text = [wav_dir / name for name, _ in PAIRS], [caption for _, caption in PAIRS]
    np.testing.assert_allclose(scorer.score(audio, text, batch_size="auto"), expected, atol=1e-5)
    assert max(sizes) == 2  # 16, 8, 4, 2
    assert sum(sizes) == WINDOWS + ROWS
    with pytest.raises(MemoryError, match="not enough memory for batches of 5: try a smaller --batch-size"):
        scorer.score(audio, text, batch_size=5)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_freed_memory_is_kept():
    """Large tensors that are freed and made again soon cost no new pages."""
    code = """
import resource, sys
from xacle.scoring.malloc import keep_freed_memory
assert sys.argv[1] == "default" or keep_freed_memory()
import torch
for _ in range(20): torch.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): torch.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    faults = {}
    for setting in ("default", "kept"):
        command = [sys.executable, "-c", code, setting]
        faults[setting] = int(subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout)
    assert faults["kept"] < 0.1 * faults["default"]


def test_a_large_table_costs_little_time_and_memory(tiny_folder, tmp_path, monkeypatch):
    """100,000 rows through a model that takes no time: what is left is reading, sorting and writing."""
    alive, most = 0, 0

    def encode(self, fbank):
        nonlocal alive, most
        tokens = torch.zeros(len(fbank), 100, 896)
        alive, most = alive + len(fbank), max(most, alive + len(fbank))
        weakref.finalize(tokens, forget, len(fbank))
        return tokens

    def forget(windows):
        nonlocal alive
        alive -= windows

    monkeypatch.setattr(Scorer, "encode", encode)
    monkeypatch.setattr(Scorer, "rate", lambda self, captions, audio: np.float32([len(caption) for caption in captions]))
    rng = np.random.default_rng(0)
    for number in range(300):
        sf.write(tmp_path / f"{number}.wav", rng.standard_normal(1600) / 10, 16000)
    rows = [(f"{number % 300}.wav", "x" * (1 + number % 97)) for number in range(100_000)]
    table, output = write_table(tmp_path / "pairs.csv", rows), tmp_path / "scores.csv"
    start = time.process_time()
    score_table(tiny_folder, table, tmp_path, output, ScoringOptions(device="cpu"))
    assert time.process_time() - start < 60
    assert most < 200  # windows whose audio tokens are held: those that rows wait for, and the remembered ones
    with output.open(newline="") as file:
        written = [(row["wav_file_name"], row["text"], float(row["pred_score"])) for row in csv.DictReader(file)]
    assert written == [(name, text, len(text)) for name, text in rows]


# --- Interrupted jobs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(tiny_folder, table, wav_dir, tmp_path, monkeypatch):
    """A job that was stopped after 12 pairs; the arguments to call it again."""
    rate, calls = Scorer.rate, []

    def stopping(self, captions, audio):
        calls.append(len(captions))
        if sum(calls) > 12:
            raise KeyboardInterrupt
        return rate(self, captions, audio)

    model = shutil.copytree(tiny_folder, tmp_path / "model")
    arguments = {"model": str(model), "table": table, "audio_dir": wav_dir, "output": tmp_path / "scores.csv"}
    arguments["options"] = ScoringOptions(batch_size=4, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "rate", stopping)
        with pytest.raises(KeyboardInterrupt, match=r"in .*scores\.csv\.part: the same command continues"):
            score_table(**arguments)
    assert not (tmp_path / "scores.csv").exists()
    return arguments


@pytest.fixture
def rated(monkeypatch) -> list[int]:
    """How many pairs' windows were rated, call by call."""
    counts, rate = [], Scorer.rate

    def counting(self, captions, audio):
        counts.append(len(captions))
        return rate(self, captions, audio)

    monkeypatch.setattr(Scorer, "rate", counting)
    return counts


def journaled(part) -> list[dict]:
    """The rows of a journal's complete lines."""
    lines = part.read_text().splitlines(keepends=True)[1:]
    return [row for line in lines if line.endswith("\n") for row in json.loads(line)["rows"]]


def test_an_interrupted_job_goes_on(interrupted, expected, rated, tmp_path, capsys):
    part = tmp_path / "scores.csv.part"
    kept = len(journaled(part))
    with part.open("a") as file:
        file.write('{"block": [0, 0], "unit": 2, "rows": [{"line": 3, "wav_file')  # the writer was killed here
    score_table(**interrupted)
    np.testing.assert_allclose(read_scores(tmp_path / "scores.csv"), expected, atol=1e-5)
    assert f"{kept} rows that were scored before are kept" in capsys.readouterr().err
    assert 0 < kept <= ROWS - sum(rated) < ROWS
    assert sorted(path.name for path in tmp_path.glob("scores*")) == ["scores.csv", "scores.csv.json"]


def test_what_changed_is_reported_and_scored_anew(interrupted, rated, tmp_path, capsys):
    part, old = tmp_path / "scores.csv.part", tmp_path / "scores.csv.part.old"
    content = part.read_bytes()
    model = tmp_path / "model"
    changes = {
        "window": lambda: interrupted.update(options=ScoringOptions(batch_size=4, device="cpu", window="first")),
        "table": lambda: write_table(interrupted["table"], [*PAIRS[1:], PAIRS[0]]),
        "model": lambda: (model / "config.json").write_text((model / "config.json").read_text() + " "),
        "sounds": lambda: os.utime(interrupted["audio_dir"] / "0.wav", (1, 1)),
    }
    for name, change in changes.items():
        part.write_bytes(content)
        rated.clear()
        change()
        score_table(**interrupted)
        printed = capsys.readouterr().err
        assert "was of another job" in printed and name in printed.split("(")[1].split(")")[0]
        assert sum(rated) in (len(PAIRS), ROWS)
        assert old.read_bytes() == content


def test_a_killed_command_goes_on(tiny_folder, wav_dir, tmp_path):
    rows = [(name, f"Rain number {number}") for number in range(2000) for name in NAMES[:2]]
    table, output = write_table(tmp_path / "pairs.csv", rows), tmp_path / "scores.csv"
    options = ["score", "--model", tiny_folder, "--input", table, "--audio-dir", wav_dir, "--output", output]
    command = [sys.executable, "-c", XACLE, *map(str, options), "--workers", "2"]
    part = tmp_path / "scores.csv.part"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (part.exists() and part.stat().st_size > 5000) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        assert process.poll() is None and part.exists()
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 1 and "another process is writing to" in second.stderr
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) >= 2 and not any(Path(f"/proc/{worker}").exists() for worker in workers)
    done = journaled(part)
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"{len(done)} rows that were scored before are kept" in result.stderr
    with output.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [(row["wav_file_name"], row["text"]) for row in written] == rows
    assert all(float(written[row["line"] - 2]["pred_score"]) == row["pred_score"] for row in done)
    assert not part.exists()


def test_a_file_that_is_no_journal_is_kept(tiny_folder, table, wav_dir, tmp_path):
    (tmp_path / "scores.csv.part").write_text("mine")
    score_table(tiny_folder, table, wav_dir, tmp_path / "scores.csv", ScoringOptions(device="cpu"))
    assert (tmp_path / "scores.csv.part.old").read_text() == "mine"


# --- Shards --------------------------------------------------------------------------------------------------------------


def test_shards_share_a_table(tiny_folder, table, wav_dir, tmp_path, expected, encoded):
    output = tmp_path / "scores.csv"
    for index in (2, 0, 1):
        assert not output.exists()
        report = score_table(tiny_folder, table, wav_dir, output, ScoringOptions(device="cpu", share=Share(index, 3)))
        assert report.unfinished == {2: [0, 1], 0: [1], 1: []}[index]
    assert report.scored == len(PAIRS)
    np.testing.assert_allclose(read_scores(output), expected, atol=1e-5)
    assert sum(encoded) == WINDOWS
    assert sorted(path.name for path in tmp_path.glob("scores*")) == ["scores.csv", "scores.csv.json"]


def test_shards_of_different_jobs_are_not_merged(tiny_folder, table, wav_dir, tmp_path):
    output = tmp_path / "scores.csv"
    score_table(tiny_folder, table, wav_dir, output, ScoringOptions(device="cpu", share=Share(0, 2)))
    report = score_table(tiny_folder, table, wav_dir, output, ScoringOptions(device="cpu", share=Share(1, 2), window="first"))
    assert report.unfinished == [0] and not output.exists()
    report = score_table(tiny_folder, table, wav_dir, output, ScoringOptions(device="cpu", share=Share(0, 2), window="first"))
    assert report.unfinished == [] and output.exists()
    with pytest.raises(ValueError, match="2 shards are numbered from 0 to 1, got 2"):
        Share(2, 2)


def test_shards_report_every_bad_sound(tiny_folder, wav_dir, tmp_path):
    sf.write(tmp_path / "nan.wav", np.full(16000, np.nan, dtype=np.float32), 16000, subtype="FLOAT")
    shutil.copy(tmp_path / "nan.wav", tmp_path / "nan_copy.wav")
    rows = [(str(wav_dir / "0.wav"), "Rain"), ("nan.wav", "Rain"), (str(wav_dir / "1.wav"), "Rain"), ("nan_copy.wav", "Rain")]
    table, output = write_table(tmp_path / "pairs.csv", rows), tmp_path / "scores.csv"
    for index in range(3):
        arguments = {"device": "cpu", "share": Share(index, 4)}
        score_table(tiny_folder, table, tmp_path, output, ScoringOptions(**arguments))
    with pytest.raises(TableError, match=r"the other 2 rows are in") as error:
        score_table(tiny_folder, table, tmp_path, output, ScoringOptions(device="cpu", share=Share(3, 4)))
    assert "line 3: " in str(error.value) and "nan.wav holds NaN" in str(error.value)
    assert "line 5: " in str(error.value) and "nan_copy.wav' holds the same bytes as" in str(error.value)


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_launched_processes_are_shards(tiny_folder, table, wav_dir, tmp_path, expected, launcher):
    launch = {
        "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"],
        "accelerate": ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--main_process_port", "0"],
    }[launcher]
    output = tmp_path / "scores.csv"
    options = ["--model", tiny_folder, "--input", table, "--audio-dir", wav_dir, "--output", output, "--device", "cpu"]
    command = [sys.executable, "-m", *launch, "-m", "xacle.cli", "score", *map(str, options)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(read_scores(output), expected, atol=1e-5)


# --- However the work is cut ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "workers", "shards"), [(1, 0, 1), (3, 2, 2), (64, 1, 5)])
def test_no_score_depends_on_how_the_work_is_cut(tiny_folder, wav_dir, tmp_path, expected, batch_size, workers, shards):
    order = np.random.default_rng(batch_size).permutation(len(PAIRS))
    table = write_table(tmp_path / "pairs.csv", [PAIRS[row] for row in order])
    for index in range(shards):
        arguments = {"batch_size": batch_size, "workers": workers, "share": Share(index, shards), "device": "cpu"}
        score_table(tiny_folder, table, wav_dir, tmp_path / "scores.csv", ScoringOptions(**arguments))
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = [(row["wav_file_name"], row["text"], float(row["pred_score"])) for row in csv.DictReader(file)]
    assert [row[:2] for row in rows] == [PAIRS[row] for row in order]
    np.testing.assert_allclose([row[2] for row in rows], expected[order], atol=1e-5)
