"""Sources of pairs: the same rows give the same scores wherever they stand; what is broken costs its own row only."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from xacle.audio_xacle import load_waveform
from xacle.core.clips import Share
from xacle.core.columns import ColumnNames
from xacle.core.tables import TableError
from xacle.demo.tiny_models import make_sound
from xacle.scoring.blocks import BLOCK_ROWS
from xacle.scoring.scorer import Scorer
from xacle.scoring.table_job import ScoringOptions, score_table
from xacle.train.data import read_table

XACLE = [sys.executable, "-c", "import sys; from xacle.cli import main; sys.argv[0] = 'xacle'; main()"]
CLIPS, CAPTIONS = 12, 3
SUFFIXES = ("flac", "wav", "ogg")


def caption_of(clip: int, number: int) -> str:
    return f"Sound {clip}, {'again and ' * ((clip + 5 * number) % 7)}again"


ROWS = [
    (f"{clip:02}.{SUFFIXES[clip % 3]}", caption_of(clip, number), clip % 10)
    for clip in range(CLIPS)
    for number in range(CAPTIONS)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The same rows in every form, their sounds in `wav`."""
    from datasets import Audio, Dataset

    root = tmp_path_factory.mktemp("sources")
    (root / "wav").mkdir()
    for name in dict.fromkeys(row[0] for row in ROWS):
        clip = int(name[:2])
        kind = ("rain", "siren", "clock", "engine")[clip % 4]
        sf.write(root / "wav" / name, make_sound(kind, 0.4 + clip % 3), 16000)
    write_csv(root / "pairs.csv", ROWS)
    write_csv(root / "half0.csv", ROWS[:17])
    write_csv(root / "half1.csv", ROWS[17:])
    sounds = [{"bytes": (root / "wav" / name).read_bytes(), "path": name} for name, _, _ in ROWS]
    columns = {"audio": sounds, "text": [row[1] for row in ROWS], "average_score": [row[2] for row in ROWS]}
    dataset = Dataset.from_dict(columns).cast_column("audio", Audio(decode=False))  # encoding would take torchcodec
    dataset.save_to_disk(str(root / "saved"))
    dataset.to_parquet(str(root / "pairs.parquet"))
    for shard in range(2):
        write_shard(root / f"shard-{shard}.tar", root / "wav", range(CLIPS // 2 * shard, CLIPS // 2 * (shard + 1)))
    write_shard(root / "all.tar.gz", root / "wav", range(CLIPS))
    return root


def write_csv(path: Path, rows) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("wav_file_name", "text", "average_score"), *rows])
    return path


def write_shard(path: Path, wav: Path, clips, broken: dict[str, bytes] | None = None) -> Path:
    """A shard, in which the content of some members is replaced."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for clip in clips:
            rows = [row for row in ROWS if row[0].startswith(f"{clip:02}.")]
            about = {"text": [row[1] for row in rows], "average_score": [row[2] for row in rows]}
            sound = (wav / rows[0][0]).read_bytes()
            for name, content in ((rows[0][0], sound), (f"{clip:02}.json", json.dumps(about).encode())):
                content = (broken or {}).get(name, content)
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def score(model, source, output: Path, audio_dir=None, **options) -> list[dict]:
    score_table(model, source, audio_dir, output, ScoringOptions(device="cpu", **options))
    return read(output)


def read(output: Path) -> list[dict]:
    with output.open(newline="") as file:
        return list(csv.DictReader(file))


def scores(rows: list[dict]) -> list[tuple[str, str]]:
    return [(row["text"], row["pred_score"]) for row in rows]


@pytest.fixture(scope="module")
def expected(tiny_folder, folder) -> list[tuple[str, str]]:
    return scores(score(tiny_folder, folder / "pairs.csv", folder / "expected.csv", folder / "wav"))


# --- The same rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["saved", "pairs.parquet", "shard-*.tar", "all.tar.gz", "half*.csv"])
def test_the_same_rows_give_the_same_scores_to_the_bit(tiny_folder, folder, expected, tmp_path, source):
    audio_dir = folder / "wav" if source.endswith(".csv") else None
    found = score(tiny_folder, str(folder / source), tmp_path / "scores.csv", audio_dir)
    assert scores(found) == expected and [text for text, _ in expected] == [row[1] for row in ROWS]
    assert {path.name for path in tmp_path.iterdir()} == {"scores.csv", "scores.csv.json"}


def test_rows_of_a_sound_that_stand_apart_are_grouped_alike(tiny_folder, folder, tmp_path):
    from datasets import load_from_disk

    order = np.random.default_rng(0).permutation(len(ROWS))
    load_from_disk(str(folder / "saved")).select(order).to_parquet(str(tmp_path / "mixed.parquet"))
    table = write_csv(tmp_path / "mixed.csv", [ROWS[row] for row in order])
    in_files = score(tiny_folder, table, tmp_path / "a.csv", folder / "wav")
    assert scores(score(tiny_folder, tmp_path / "mixed.parquet", tmp_path / "b.csv")) == scores(in_files)


def test_rows_of_tars_are_named_by_shard_and_key(tiny_folder, folder, tmp_path):
    found = score(tiny_folder, str(folder / "shard-*.tar"), tmp_path / "scores.csv", keep_columns="all")
    assert [row["wav_file_name"] for row in found] == [f"shard-{int(name[:2]) // 6}/{name}" for name, _, _ in ROWS]
    assert [row["average_score"] for row in found] == [str(row[2]) for row in ROWS]
    assert list(found[0]) == ["wav_file_name", "text", "average_score", "pred_score"]


def test_columns_may_have_other_names_and_outputs_other_forms(tiny_folder, folder, expected, tmp_path):
    from pyarrow import parquet

    table = tmp_path / "pairs.jsonl"
    records = [{"clip": name, "description": text, "extra": score, "n": None} for name, text, score in ROWS]
    table.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = {"names": ColumnNames("clip", "description"), "keep_columns": ["extra"], "device": "cpu"}
    score_table(tiny_folder, table, folder / "wav", tmp_path / "scores.parquet", ScoringOptions(**options))
    found = parquet.read_table(tmp_path / "scores.parquet")
    assert found.column_names == ["wav_file_name", "text", "extra", "pred_score"]
    assert [str(kind) for kind in found.schema.types] == ["string", "string", "int64", "float"]
    assert found["pred_score"].to_pylist() == [float(np.float32(score)) for _, score in expected]
    with pytest.raises(ValueError, match="has no column nowhere to keep"):
        score_table(
            tiny_folder, table, folder / "wav", tmp_path / "b.csv", ScoringOptions(**{**options, "keep_columns": ["nowhere"]})
        )


def test_a_source_is_trained_on_as_its_table_is(folder):
    table = read_table(folder / "pairs.csv", folder / "wav")
    for source in ("saved", "pairs.parquet", "shard-*.tar"):
        other = read_table(str(folder / source))
        assert [Path(name).name for name in other.clips] == table.clips and other.captions == table.captions
        for name in ("clip_index", "caption_index", "labels"):
            assert (getattr(other, name) == getattr(table, name)).all()
        for file, sound in zip(table.audio, other.audio, strict=True):
            assert not isinstance(sound, bytes) and (load_waveform(file) == load_waveform(sound)).all()
    with pytest.raises(ValueError, match=r"is compressed.* unpack it to a \.tar"):
        read_table(folder / "all.tar.gz")
    assert (read_table(folder / "pairs.parquet", names=ColumnNames(score="average_score")).labels == table.labels).all()


# --- Cuts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_cut_is_what_a_file_of_it_is(tmp_path, suffix, monkeypatch):
    whole = make_sound("siren", 30.0)
    sf.write(tmp_path / f"long.{suffix}", whole, 16000)
    decoded = sf.read(tmp_path / f"long.{suffix}", dtype="float32")[0]
    read_frames = []
    monkeypatch.setattr(
        sf.SoundFile,
        "read",
        lambda self, frames=-1, _read=sf.SoundFile.read, **how: (read_frames.append(frames), _read(self, frames, **how))[1],
    )
    cut = load_waveform({"path": tmp_path / f"long.{suffix}", "start": 12.5, "end": 14.0})
    np.testing.assert_allclose(cut, decoded[200_000:224_000], atol=1e-4)
    assert read_frames == [24_000]
    for start, end in ((31, 32), (2, 1), (-1, 2), (29, 30.5)):
        with pytest.raises(ValueError, match=r"long\.\w+ .*(0 <= start < end|lasts 30 s)"):
            load_waveform(tmp_path / f"long.{suffix}", start=start, end=end)
    assert len(load_waveform(whole, 16000, start=29)) == 16_000
    assert len(load_waveform(tmp_path / f"long.{suffix}", start=29, end=30.05)) == 16_000


def test_rows_score_cuts_of_long_files_and_keep_them(tiny_folder, tmp_path):
    sound = make_sound("siren", 40.0)
    sf.write(tmp_path / "long.wav", sound, 16000)
    sf.write(tmp_path / "cut.wav", sf.read(tmp_path / "long.wav")[0][5 * 16000 : 8 * 16000], 16000)
    table = tmp_path / "cuts.csv"
    table.write_text("wav_file_name,text,start,end\nlong.wav,A siren,5,8.0\nlong.wav,A siren,30,\ncut.wav,A siren,,\n")
    cut, rest, file = score(tiny_folder, table, tmp_path / "scores.csv")
    assert cut["pred_score"] == file["pred_score"] != rest["pred_score"]
    assert [(row["start"], row["end"]) for row in (cut, rest, file)] == [("5", "8.0"), ("30", ""), ("", "")]
    trained = read_table(table, label="caption")
    assert len(trained.clips) == 3 and len(load_waveform(trained.audio[0])) == 3 * 16000
    table.write_text("wav_file_name,text,start,end\nlong.wav,A siren,5,80\nlong.wav,A siren,x,\n")
    with pytest.raises(
        TableError, match=r"line 2: .*long.wav lasts 40 s(.|\n)*line 3: start must be a number of seconds, got 'x'"
    ):
        score(tiny_folder, table, tmp_path / "scores.csv")


# --- What is broken ------------------------------------------------------------------------------------------------------


def test_a_broken_member_costs_its_own_rows(tiny_folder, folder, expected, tmp_path):
    broken = {"01.wav": b"RIFF no sound", "04.json": b"{", "06.json": b'{"text": ""}'}
    source = write_shard(tmp_path / "bad.tar", folder / "wav", range(CLIPS), broken)
    with pytest.raises(
        TableError, match=r"bad\.tar, row \d+: the captions of 'bad/04\.wav' cannot be read(.|\n)*--on-error skip"
    ):
        score(tiny_folder, source, tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()
    found = score(tiny_folder, source, tmp_path / "scores.csv", on_error="skip")
    lost = {1, 4, 6}
    kept = [score for row, score in zip(ROWS, expected, strict=True) if int(row[0][:2]) not in lost]
    assert [text for text, _ in scores(found)] == [text for text, _ in kept]
    np.testing.assert_allclose([float(s) for _, s in scores(found)], [float(s) for _, s in kept], atol=1e-5)
    rejected = read(tmp_path / "scores.csv.rejected.csv")
    assert {row["wav_file_name"] for row in rejected} == {"bad/01.wav", "bad/04.wav", "bad/06.flac"}
    assert all(row["source"] == str(source) and row["reason"] for row in rejected)
    assert sum("bad/01.wav" in row["reason"] and "cannot decode" in row["reason"] for row in rejected) == 3


def test_damage_to_a_shard_is_never_taken_for_its_end(tiny_folder, folder, tmp_path):
    whole = (folder / "shard-0.tar").read_bytes()
    with tarfile.open(folder / "shard-0.tar") as tar:
        third = tar.getmember("02.ogg").offset
        inside = tar.getmember("03.flac").offset_data + 100
    header = bytearray(whole)
    header[third : third + 512] = b"x" * 512
    for name, content in {"header": bytes(header), "cut": whole[:inside], "short": whole[: third + 512 - 512]}.items():
        source = tmp_path / f"{name}.tar"
        source.write_bytes(content)
        with pytest.raises(TableError, match=r"is damaged or cut off|is lost"):
            score(tiny_folder, source, tmp_path / f"{name}.csv")
        found = score(tiny_folder, source, tmp_path / f"{name}.csv", on_error="skip")
        names = {row["wav_file_name"].partition("/")[2] for row in found}
        assert names == (
            {"00.flac", "01.wav", "03.flac", "04.wav", "05.ogg"}
            if name == "header"
            else {"00.flac", "01.wav"} | ({"02.ogg"} if name == "cut" else set())
        )
        assert any("lost" in row["reason"] for row in read(tmp_path / f"{name}.csv.rejected.csv"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing*.tar", "no files match"),
        ("wav", "is a folder, not a table"),
        ("wav/00.flac", r"must end in \.csv, \.jsonl, \.parquet"),
        (["pairs.csv", "pairs.csv"], "is given twice"),
        (["pairs.csv", "shard-0.tar"], "of several kinds"),
        ("lacking.parquet", r"lacking\.parquet' needs the column text or caption"),
        ("damaged.parquet", "cannot be read as Parquet"),
    ],
)
def test_sources_that_cannot_be_read_are_explained(tiny_folder, folder, source, message, tmp_path, monkeypatch):
    import pyarrow as pa
    from pyarrow import parquet

    monkeypatch.chdir(folder)
    parquet.write_table(pa.table({"wav_file_name": ["a.wav"]}), "lacking.parquet")
    Path("damaged.parquet").write_bytes(b"PAR1")
    with pytest.raises((ValueError, OSError), match=message):
        score(tiny_folder, source, tmp_path / "scores.csv")


# --- Interrupted, and in several processes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["pairs.parquet", "shard-*.tar"])
def test_shards_share_a_stream(tiny_folder, folder, expected, tmp_path, source):
    reports = []
    for index in (1, 0):
        options = ScoringOptions(device="cpu", share=Share(index, 2))
        reports.append(score_table(tiny_folder, str(folder / source), None, tmp_path / "scores.csv", options))
    assert reports[0].unfinished == [0] and reports[1].unfinished == [] and reports[1].scored == len(ROWS)
    found = scores(read(tmp_path / "scores.csv"))
    assert [text for text, _ in found] == [text for text, _ in expected]
    np.testing.assert_allclose([float(score) for _, score in found], [float(score) for _, score in expected], atol=1e-5)


def test_a_killed_stream_goes_on_to_the_same_bytes(tiny_folder, folder, tmp_path):
    for shard in range(3):
        with tarfile.open(tmp_path / f"many-{shard}.tar", "w") as tar:
            for clip in range(40):
                about = json.dumps({"text": [f"{caption_of(clip, number)} {shard}" for number in range(20)]}).encode()
                sound = (folder / "wav" / ROWS[3 * (clip % CLIPS)][0]).read_bytes()
                for name, content in ((f"{clip}.{SUFFIXES[clip % CLIPS % 3]}", sound), (f"{clip}.json", about)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    options = ["score", "--model", tiny_folder, "--input", *sorted(tmp_path.glob("many-*.tar"))]
    whole, broken = tmp_path / "whole.csv", tmp_path / "broken.csv"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*XACLE, *map(str, options), "--device", "cpu", "--output"]
    part, size = tmp_path / "broken.csv.part", 100
    for _ in range(2):
        with subprocess.Popen([*command, str(broken)], stderr=subprocess.DEVNULL, env=environment) as process:
            deadline = time.monotonic() + 120
            while not (part.exists() and part.stat().st_size > size + 20_000) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
        size = part.stat().st_size
    for output in (broken, whole):
        result = subprocess.run([*command, str(output)], capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
    assert broken.read_bytes() == whole.read_bytes() and len(read(whole)) == 2400


def test_a_stream_is_not_held_in_memory(tiny_folder, folder, tmp_path, monkeypatch):
    """What is read ahead of what is scored does not grow with the stream."""
    from datasets import IterableDataset

    read_rows, ahead = [], []

    def rows():
        for number in range(4000):
            read_rows.append(number)
            sound = io.BytesIO()
            sf.write(sound, np.full(1600, number // 40 / 200), 16000, format="WAV")
            yield {"audio": {"bytes": sound.getvalue(), "path": f"{number // 40}.wav"}, "text": f"Sound {number}"}

    def rate(self, captions, audio):
        rated.extend(captions)
        ahead.append(len(read_rows) - len(rated))
        return np.zeros(len(captions), np.float32)

    rated = []
    monkeypatch.setattr(Scorer, "rate", rate)
    score(tiny_folder, IterableDataset.from_generator(rows), tmp_path / "scores.csv", workers=0)
    assert len(read(tmp_path / "scores.csv")) == 4000
    assert max(ahead) < 2 * BLOCK_ROWS and len(read_rows) == 4000


# --- The Hub ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ratings(hub, folder, tmp_path_factory) -> dict[str, str]:
    """A data set with an `Audio` column on the Hub, in two Parquet files of train and one of validation."""
    code = f"""
from datasets import load_from_disk
from huggingface_hub import HfApi
dataset = load_from_disk({str(folder / "saved")!r})
api = HfApi()
api.create_repo("tester/ratings", repo_type="dataset", exist_ok=True)
half = len(dataset) // 3
for name, rows in (("train-00000-of-00002", range(half)), ("train-00001-of-00002", range(half, 2 * half)),
                   ("validation-00000-of-00001", range(2 * half, 3 * half))):
    dataset.select(rows).to_parquet("part.parquet")
    file = {{"path_or_fileobj": "part.parquet", "path_in_repo": f"data/{{name}}.parquet"}}
    api.upload_file(repo_id="tester/ratings", repo_type="dataset", **file)
"""
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, **hub.env(home), "HF_DATASETS_CACHE": str(home / "datasets"), "TQDM_DISABLE": "1"}
    result = subprocess.run([sys.executable, "-c", code], cwd=home, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return environment


def test_a_hub_data_set_is_streamed_by_id(ratings, tiny_folder, folder, tmp_path):
    train = 2 * (len(ROWS) // 3)
    command = [*XACLE, "score", "--model", tiny_folder, "--device", "cpu", "--output"]
    by_id = subprocess.run(
        [*command, tmp_path / "hub.csv", "--dataset", "tester/ratings", "--split", "train"],
        env=ratings, capture_output=True, text=True,
    )  # fmt: skip
    assert by_id.returncode == 0, by_id.stderr[-3000:]
    table = write_csv(tmp_path / "train.csv", ROWS[:train])
    in_files = score(tiny_folder, table, tmp_path / "files.csv", folder / "wav")
    np.testing.assert_allclose(
        [float(row["pred_score"]) for row in read(tmp_path / "hub.csv")],
        [float(row["pred_score"]) for row in in_files],
        atol=1e-5,
    )
    assert [row["text"] for row in read(tmp_path / "hub.csv")] == [row[1] for row in ROWS[:train]]
    cache = Path(ratings["HF_HOME"]) / "hub"
    assert not list(cache.rglob("*.parquet"))  # streamed
    refused = subprocess.run(
        [*command, tmp_path / "b.csv", "--dataset", "tester/nothing", "--split", "train"],
        env=ratings,
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 1 and "tester/nothing (train)' cannot be read from the Hub" in refused.stderr


def test_a_hub_data_set_trains_stage_3_as_its_table_does(ratings, tiny_folder, folder, tmp_path):
    third = len(ROWS) // 3
    write_csv(tmp_path / "train.csv", ROWS[: 2 * third])
    write_csv(tmp_path / "validation.csv", ROWS[2 * third :])
    common = {
        "model-name-or-path": tiny_folder, "per-device-train-batch-size": 8, "num-train-epochs": 1, "learning-rate": 3e-3,
        "use-cpu": "true", "disable-tqdm": "true",
    }  # fmt: skip
    sources = {
        "hub": {"train-dataset": "tester/ratings", "validation-dataset": "tester/ratings"},
        "files": {
            "train-file": tmp_path / "train.csv", "validation-file": tmp_path / "validation.csv",
            "audio-dir": folder / "wav", "validation-audio-dir": folder / "wav",
        },
    }  # fmt: skip
    for name, source in sources.items():
        given = {**common, **source, "output-dir": tmp_path / name, "feature-cache": tmp_path / f"cache_{name}"}
        words = [word for option, value in given.items() for word in (f"--{option}", str(value))]
        result = subprocess.run([*XACLE, "train", "ratings", *words], env=ratings, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in sources]
    assert weights[0] == weights[1]
    record = json.loads((tmp_path / "hub" / "run.json").read_text())
    assert record["data"]["train"]["checksum"].startswith("tester/ratings@")
