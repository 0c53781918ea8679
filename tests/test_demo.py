"""`xacle demo`: the whole recipe in miniature, as a user runs it. What it learns in full is told by `make demo`, not here."""

import csv
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile as sf
from transformers import AutoModel, AutoProcessor

from xacle.demo import parts, recipe, results
from xacle.demo.panel import write_corpus
from xacle.scoring.evaluation import evaluate

WITHOUT_NETWORK = """
import socket, sys

connect = socket.socket.connect

def refuse(*args, **kwargs):
    raise AssertionError(f"network access: {args}")

def connect_locally(self, address):  # the processes of one machine pass each other tensors in this way
    return connect(self, address) if self.family == socket.AF_UNIX else refuse(self, address)

socket.getaddrinfo = socket.create_connection = refuse
socket.socket.connect, socket.socket.connect_ex = connect_locally, refuse
sys.argv = ["xacle", *sys.argv[1:]]
from xacle.cli import main
main()
"""


def read_csv(file) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def start_demo(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-c", WITHOUT_NETWORK, "demo", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


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
    assert [row["key"] for row in run["table"]] == [key for key, *_ in results.ROWS]
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


def test_a_killed_demo_goes_on_where_it_stopped_and_ends_with_the_same_table(finished, tmp_path):
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
    assert "Stage 3 only: finished before" not in again
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
        recipe.run_demo(tmp_path, quick=True)
    with pytest.raises(FileExistsError, match="is a file"):
        recipe.run_demo(tmp_path / "thesis.txt", quick=True)
    with pytest.raises(
        FileExistsError, match="the demo run of `xacle demo --quick --seed 0`, not of `xacle demo --quick --seed 1`"
    ):
        recipe.run_demo(finished[0], quick=True, seed=1)


def test_blind_controls_hide_what_they_say_they_hide(finished):
    out, _ = finished
    for split in recipe.RATED:
        truth = read_csv(out / f"corpus/meta_data/{split}_average.csv")
        blind = read_csv(out / f"tables/{split}{recipe.CAPTION_BLIND}.csv")
        assert {row["text"] for row in blind} == {results.BLIND_CAPTION}
        pairs = [[(row["wav_file_name"], float(row["average_score"])) for row in rows] for rows in (blind, truth)]
        assert pairs[0] == pairs[1]
        deaf = read_csv(out / f"tables/{split}{recipe.AUDIO_BLIND}.csv")
        assert {row["wav_file_name"] for row in deaf} == {"silence.wav"}
        for row in deaf:
            ratings = [float(other["average_score"]) for other in truth if other["text"] == row["text"]]
            assert float(row["average_score"]) == pytest.approx(np.mean(ratings))
        assert {row["text"] for row in deaf} == {row["text"] for row in truth}
    assert not sf.read(out / "tables/silence.wav")[0].any()


def test_encoder_learns_to_tell_events_apart():
    _, untrained = parts.train_encoder(clips_per_kind=1, steps=1, seed=0)
    model, found = parts.train_encoder(clips_per_kind=6, steps=200, seed=0)
    assert model.config.num_labels == len(parts.CLASSES)
    assert untrained < 0.2 and found > untrained + 0.1


def test_corpus_gives_nothing_away_to_the_deaf_or_to_those_who_do_not_read(tmp_path):
    """Neither the caption's length nor the number of its events nor that of the clip's tells the rating."""
    from scipy.stats import spearmanr

    write_corpus(tmp_path / "corpus", seed=3, train=2, validation=2, test=400, captions=1)
    scenes = [json.loads(line) for line in (tmp_path / "corpus/scenes.jsonl").read_text().splitlines()]
    scenes = [scene for scene in scenes if scene["split"] == "test"]
    agreements = [scene["agreement"] for scene in scenes]
    for side in ("heard", "described"):
        events = [scene[side]["events"] for scene in scenes]
        details = [sum(len(event["attributes"]) + (event["count"] > 0) for event in several) for several in events]
        for cue in ([len(several) for several in events], details):
            assert abs(spearmanr(cue, agreements).statistic) < 0.15  # three standard errors
