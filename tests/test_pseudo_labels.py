"""`xacle pseudo-label`: a table of captioned clips becomes the rows of stage 2."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from test_teacher import SOUNDS, make_sound, save_tiny_clap

from xacle.clap.encoder import ClapEncoder
from xacle.core.tables import TableError
from xacle.train.data import read_table
from xacle.train.teacher.pseudo_labels import PseudoLabels, embed_captions, pseudo_label


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return ClapEncoder.from_pretrained(save_tiny_clap(tmp_path_factory.mktemp("teacher") / "clap"), device="cpu")


@pytest.fixture
def captions(tmp_path):
    """A table of 12 clips (one of them the copy of another) with 2 captions each, 20 different ones in all."""
    generator, rows = np.random.default_rng(0), []
    (tmp_path / "wav").mkdir()
    for number in range(12):
        name = f"clip, {number}.wav"  # a name to put in quotes
        if number == 11:
            shutil.copy(tmp_path / "wav/clip, 0.wav", tmp_path / "wav" / name)
        else:
            sound = make_sound(SOUNDS[number % 4], generator, generator.uniform(0.1, 1.5))
            sf.write(tmp_path / "wav" / name, sound, 16000, subtype="FLOAT")
        texts = (f"noise {'and clicks ' * number}", f'a "low" tone, and noise {number % 8}')
        rows += [(name, text) for text in texts]
    return write_table(tmp_path / "captions.csv", rows)


def write_table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("wav_file_name", "text"), *rows])
    return path


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def label(teacher, table, name="labels.csv", **options):
    options = {"audio_dir": table.parent / "wav", "feature_cache": table.parent / "cache", "batch_size": 4, **options}
    return pseudo_label(teacher, table, table.parent / name, **options)


@pytest.fixture
def embedded(teacher, monkeypatch):
    """Counts what the teacher embeds: `{"clips": n, "captions": n}`."""
    counts = {"clips": 0, "captions": 0}
    embed_audio, embed_text = teacher.embed_audio_inputs, teacher.embed_text

    def count_audio(inputs):
        counts["clips"] += len(inputs["input_features"])
        return embed_audio(inputs)

    def count_text(texts):
        counts["captions"] += len(texts)
        return embed_text(texts)

    monkeypatch.setattr(teacher, "embed_audio_inputs", count_audio)
    monkeypatch.setattr(teacher, "embed_text", count_text)
    return counts


def test_the_rows_of_stage_2(teacher, captions, tmp_path, embedded):
    assert label(teacher, captions) == PseudoLabels(rows=94, negatives=70, rejected=0)
    assert embedded == {"clips": 11, "captions": 20}  # each content and each text once
    rows, given = read_rows(tmp_path / "labels.csv"), read_rows(captions)
    assert list(rows[0]) == ["wav_file_name", "text", "clap_score", "is_negative"]
    true = [row for row in rows if row["is_negative"] == "0"]
    assert [(row["wav_file_name"], row["text"]) for row in true] == [(row["wav_file_name"], row["text"]) for row in given]
    assert rows[0] == true[0] and [row["is_negative"] for row in rows[:3]] == ["0", "1", "1"]  # followed by its negatives

    copies = {"clip, 11.wav": "clip, 0.wav"}
    content = {row["wav_file_name"]: copies.get(row["wav_file_name"], row["wav_file_name"]) for row in rows}
    matches = {(content[row["wav_file_name"]], row["text"]) for row in true}
    negatives = [(content[row["wav_file_name"]], row["text"]) for row in rows if row["is_negative"] == "1"]
    assert len(set(negatives)) == 70 and not matches & set(negatives)

    for row in rows:
        with torch.no_grad():
            waveform = teacher.load(tmp_path / "wav" / row["wav_file_name"])
            assert float(row["clap_score"]) == pytest.approx(teacher.similarity([waveform], [row["text"]]).item(), abs=2e-6)
    table = read_table(tmp_path / "labels.csv", tmp_path / "wav", "pseudo_label")
    assert len(table) == 94 and len(table.clips) == 12 and len(table.captions) == 20
    np.testing.assert_allclose(table.labels, [5 + 5 * float(row["clap_score"]) for row in rows], rtol=1e-6)
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob("*.rejected.csv"))


def test_the_second_time_nothing_is_embedded(teacher, captions, tmp_path, embedded):
    label(teacher, captions, seed=7)
    embedded.update(clips=0, captions=0)
    label(teacher, captions, "again.csv", seed=7)
    label(teacher, captions, "other.jsonl", seed=8)
    assert embedded == {"clips": 0, "captions": 0}
    assert (tmp_path / "labels.csv").read_bytes() == (tmp_path / "again.csv").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "other.jsonl").read_text().splitlines()]
    assert len(lines) == 94 and set(lines[0]) == {"wav_file_name", "text", "clap_score", "is_negative"}
    scores = {(row["wav_file_name"], row["text"]): float(row["clap_score"]) for row in read_rows(tmp_path / "labels.csv")}
    same = [row for row in lines if (row["wav_file_name"], row["text"]) in scores]
    assert len(same) > 24 and all(row["clap_score"] == scores[row["wav_file_name"], row["text"]] for row in same)
    other = [(row["wav_file_name"], row["text"]) for row in lines]
    assert other != [(row["wav_file_name"], row["text"]) for row in read_rows(tmp_path / "labels.csv")]

    changed = make_sound("noise", np.random.default_rng(9))
    sf.write(tmp_path / "wav/clip, 3.wav", changed, 16000, subtype="FLOAT")
    label(teacher, captions, "changed.csv", seed=7)
    assert embedded == {"clips": 4, "captions": 0}  # its batch


def test_another_teacher_shares_nothing(teacher, captions, tmp_path, embedded):
    label(teacher, captions)
    other = save_tiny_clap(tmp_path / "other", seed=1)
    label(other, captions, "other.csv", device="cpu")
    assert (tmp_path / "other.csv").read_text() != (tmp_path / "labels.csv").read_text()
    assert len([folder for folder in (tmp_path / "cache").iterdir() if folder.is_dir()]) == 4


KILLED = """
import os, signal, sys
from pathlib import Path
from xacle.clap.encoder import ClapEncoder
from xacle.train.teacher.pseudo_labels import pseudo_label

teacher, table, calls = ClapEncoder.from_pretrained(sys.argv[1], device="cpu"), Path(sys.argv[2]), []
embed = teacher.embed_audio_inputs

def embed_twice(inputs):
    calls.append(inputs)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return embed(inputs)

teacher.embed_audio_inputs = embed_twice
folder = table.parent
pseudo_label(teacher, table, folder / "labels.csv", folder / "wav", feature_cache=folder / "cache", batch_size=4)
"""


def test_a_killed_job_goes_on_where_it_was(teacher, captions, tmp_path, embedded):
    label(teacher, captions, "whole.csv", feature_cache=tmp_path / "whole")
    arguments = [teacher.model.config.name_or_path, str(captions)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (tmp_path / "labels.csv.1.tmp").write_text("wav_file_name,text\nhalf a ro")
    embedded.update(clips=0, captions=0)
    label(teacher, captions)
    assert embedded == {"clips": 3, "captions": 20}  # two batches of four were there
    assert (tmp_path / "labels.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_no_negatives_and_one_side_only(teacher, captions, tmp_path):
    assert label(teacher, captions, negatives_per_pair=0).rows == 24
    label(teacher, captions, "audio.csv", negatives_per_pair=2, replace_audio=1.0)
    rows = read_rows(tmp_path / "audio.csv")
    for true, *negatives in (rows[start : start + 3] for start in range(0, 72, 3)):
        assert {row["text"] for row in negatives} == {true["text"]}


def test_rows_that_cannot_be_labeled(teacher, captions, tmp_path):
    data = (tmp_path / "wav/clip, 5.wav").read_bytes()
    nan = np.full(2000, np.nan, np.float32)
    sf.write(tmp_path / "wav/clip, 5.wav", nan, 16000, subtype="FLOAT")  # which no header shows
    with captions.open("a") as file:
        file.write("missing.wav,noise\nclip 1.wav,\n")
    with pytest.raises(TableError, match=r"cannot be used: 2\n.*line 26: no audio file at .*\n.*line 27: no caption"):
        label(teacher, captions)
    assert label(teacher, captions, on_error="skip", negatives_per_pair=1) == PseudoLabels(44, 22, 4)
    rejected = read_rows(tmp_path / "labels.csv.rejected.csv")
    assert [row["line"] for row in rejected] == ["12", "13", "26", "27"]
    assert "NaN" in rejected[0]["reason"] and rejected[0]["text"].startswith("noise and clicks")
    assert not any("clip, 5" in row["wav_file_name"] for row in read_rows(tmp_path / "labels.csv"))

    write_table(captions, [("clip, 5.wav", "noise"), ("clip, 1.wav", "clicks")])
    with pytest.raises(TableError, match=r"cannot be labeled: 1\n.*line 2: .*NaN.*\nnothing was labeled; .* --on-error skip"):
        label(teacher, captions, negatives_per_pair=1)
    write_table(captions, [("clip, 5.wav", "noise")])
    with pytest.raises(TableError, match="no row can be labeled"):
        label(teacher, captions, on_error="skip")
    (tmp_path / "wav/clip, 5.wav").write_bytes(data)
    with pytest.raises(ValueError, match=r"1 pairs of 1 clips and 1 captions have 0 distinct mismatched pairs"):
        label(teacher, captions)


def test_wrong_arguments_are_reported_before_any_work(teacher, captions, tmp_path, embedded):
    for name, options, message in (
        ("labels.txt", {}, r"must end in \.csv or \.jsonl"),
        ("captions.csv", {}, "would overwrite the input"),
        ("no/labels.csv", {}, "its folder does not exist"),
        ("labels.csv", {"batch_size": 0}, "batch_size must be at least 1"),
        ("labels.csv", {"on_error": "ignore"}, "on_error must be"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            label(teacher, captions, name, **options)
    with pytest.raises(FileNotFoundError, match="no table at"):
        label(teacher, tmp_path / "missing.csv")
    with pytest.raises(FileNotFoundError, match="no CLAP folder at"):
        label("no/such/teacher", captions)
    assert embedded == {"clips": 0, "captions": 0} and not (tmp_path / "labels.csv").exists()


def test_captions_of_all_lengths_keep_their_order(teacher, tmp_path):
    captions = ["noise " * count for count in (9, 1, 5, 1, 30, 2)] + ["clicks"]
    (tmp_path / "cache").mkdir()
    embeddings = embed_captions(teacher, captions, tmp_path / "cache", batch_size=2)
    with torch.no_grad():
        alone = torch.cat([teacher.embed_text([caption]) for caption in captions])
    np.testing.assert_allclose(embeddings, alone, atol=1e-6)


MILLION = """
import re, sys
from pathlib import Path
import numpy as np
from xacle.train.data import PairTable
from xacle.train.negatives import draw_negatives
from xacle.train.teacher.pseudo_labels import write_pseudo_labels

clips, pairs, size = 10_000, 256_500, 512
generator = np.random.default_rng(0)
embeddings = [generator.standard_normal((count, size), dtype=np.float32) for count in (clips, clips)]
for rows in embeddings:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
chosen = generator.permutation(np.unique(generator.integers(clips * clips, size=2 * pairs)))[:pairs]
table = PairTable(
    source="", clips=[f"{n:05}.wav" for n in range(clips)], audio=[], captions=[f"a sound of kind {n}" for n in range(clips)],
    clip_index=(chosen // clips).astype(np.int32), caption_index=(chosen % clips).astype(np.int32), lines=np.arange(pairs),
)
negatives = draw_negatives(table.clip_index, table.caption_index, table.captions, negatives_per_pair=2.9)
write_pseudo_labels(Path(sys.argv[1]), table, negatives, *embeddings)
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]  # ru_maxrss would count the parent's
print(pairs + len(negatives), peak)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory is read from Linux' /proc")
def test_a_million_rows_in_little_memory(run_python, tmp_path):
    rows, kilobytes = map(int, run_python(MILLION, tmp_path / "labels.csv", package=True).split()[-2:])
    assert rows == 1_000_350 and kilobytes < 1e6
    with (tmp_path / "labels.csv").open(newline="") as file:
        reader = csv.reader(file)
        next(reader)
        negatives = [int(row[3]) for row in reader]
    assert len(negatives) == rows and sum(negatives) == rows - 256_500
