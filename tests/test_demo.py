"""`xacle demo`: the whole recipe in miniature, as a user runs it. Only `make demo` takes long enough to learn something."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from transformers import AutoModel, AutoProcessor

from xacle.demo import recipe, systems
from xacle.demo.corpus import RATED
from xacle.demo.run import run_demo
from xacle.demo.settings import Settings
from xacle.scoring.evaluation import evaluate

WITHOUT_NETWORK = Path(__file__).parent / "without_network"


def read_csv(file) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def start_demo(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-c", "from xacle.cli import main; main()", "demo", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(WITHOUT_NETWORK)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def run_to_end(*arguments) -> str:
    demo = start_demo(*arguments)
    output, _ = demo.communicate(timeout=600)
    assert demo.returncode == 0, output[-3000:]
    return output


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder and the output of a quick demo."""
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, run_to_end("--quick", "--out", out)


def test_demo_leaves_a_table_a_report_and_a_model_that_users_can_load(finished):
    out, printed = finished
    run = json.loads((out / "results.json").read_text())
    assert [row["key"] for row in run["table"]] == [system.key for system in systems.SYSTEMS]
    assert (out / "table.md").read_text() in printed
    assert f"{out}/report.html" in printed and (out / "report.html").stat().st_size > 100_000
    assert not (out / "cache").exists()

    model = AutoModel.from_pretrained(out / "model", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(out / "model", trust_remote_code=True)
    row = run["predictions"][3]
    scores = model(**processor(text=[row["text"]], audio=str(out / "corpus/wav/test" / row["wav_file_name"]))).scores
    np.testing.assert_allclose(scores.item(), row["pred_score"], atol=1e-4)


def test_the_tables_numbers_are_those_of_xacle_evaluate(finished):
    out, _ = finished
    for row in json.loads((out / "results.json").read_text())["table"]:
        for split in ("validation", "test"):
            found = evaluate(out / f"results/{split}_{row['key']}.csv", out / f"corpus/meta_data/{split}_average.csv")
            assert row[split]["value"] == pytest.approx(found.metrics["SRCC"])
            assert (row[split]["low"], row[split]["high"]) == pytest.approx(found.intervals["SRCC"])


def test_a_killed_demo_continues_where_it_stopped_and_ends_with_the_same_table(finished, tmp_path):
    out, printed = finished
    demo = start_demo("--quick", "--out", tmp_path / "out")
    deadline = time.monotonic() + 300
    while not (tmp_path / "out/steps/stage1.json").is_file():
        assert time.monotonic() < deadline and demo.poll() is None
        time.sleep(0.1)
    demo.send_signal(signal.SIGKILL)
    demo.wait()
    again = run_to_end("--quick", "--out", tmp_path / "out")
    assert "Stage 1: captioning: finished before" in again
    assert "Stage 3: ratings, after stages 1 and 2: finished before" not in again
    assert (tmp_path / "out/table.md").read_text() == (out / "table.md").read_text()
    assert "finished before" not in printed


def test_a_finished_demo_only_writes_its_report_again(finished):
    out, _ = finished
    table = (out / "table.md").read_text()
    printed = run_to_end("--quick", "--out", out)
    assert len(re.findall("finished before", printed)) == len(recipe.STEPS)
    assert (out / "table.md").read_text() == table


def test_demo_does_not_write_into_folders_of_others_or_mix_two_runs(finished, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        run_demo(tmp_path, Settings(quick=True))
    with pytest.raises(FileExistsError, match="is a file"):
        run_demo(tmp_path / "thesis.txt", Settings(quick=True))
    with pytest.raises(
        FileExistsError, match="the demo run of `xacle demo --quick --seed 0`, not of `xacle demo --quick --seed 1`"
    ):
        run_demo(finished[0], Settings(quick=True, seed=1))


def test_the_controls_hide_the_sound_or_the_caption(finished):
    out, _ = finished
    for split in RATED:
        truth = read_csv(out / f"corpus/meta_data/{split}_average.csv")
        blind = read_csv(out / f"tables/{split}{recipe.CAPTION_BLIND}.csv")
        assert {row["text"] for row in blind} == {systems.BLIND_CAPTION}
        pairs = [[(row["wav_file_name"], float(row["average_score"])) for row in rows] for rows in (blind, truth)]
        assert pairs[0] == pairs[1]
        silent = read_csv(out / f"tables/{split}{recipe.AUDIO_BLIND}.csv")
        assert {row["wav_file_name"] for row in silent} == {"silence.wav"}
        for row in silent:
            ratings = [float(other["average_score"]) for other in truth if other["text"] == row["text"]]
            assert float(row["average_score"]) == pytest.approx(np.mean(ratings))
        assert {row["text"] for row in silent} == {row["text"] for row in truth}
    assert not sf.read(out / "tables/silence.wav")[0].any()


def test_the_recipe_runs_on_a_corpus_folder_with_several_captions_a_clip_and_a_given_encoder(finished, tmp_path):
    out, _ = finished
    corpus = tmp_path / "corpus"
    shutil.copytree(out / "corpus", corpus)
    for name in ("corpus.json", "scenes.jsonl", "meta_data/test_captions.csv"):
        (corpus / name).unlink()
    for split in RATED:  # each clip a second time, with the caption of another
        table = corpus / f"meta_data/{split}_average.csv"
        rows = read_csv(table)
        rows += [{**row, "text": other["text"], "average_score": "1.0"} for row, other in pairwise(rows)]
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    arguments = ("--quick", "--out", tmp_path / "out", "--corpus", corpus, "--audio-encoder", out / "encoder")
    printed = run_to_end(*arguments)
    run = json.loads((tmp_path / "out/results.json").read_text())
    assert run["corpus"]["test"] == {"pairs": 63} and not (tmp_path / "out/corpus").exists()
    assert "Noise ceiling" not in printed and "simulated" not in (tmp_path / "out/report.html").read_text()
    assert all(np.isfinite(row["test"]["value"]) for row in run["table"])
    with pytest.raises(FileExistsError, match="the demo run of `xacle demo --quick --seed 0 --corpus"):
        run_demo(tmp_path / "out", Settings(quick=True))
