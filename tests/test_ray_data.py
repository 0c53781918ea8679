"""Ray Data scores with actors: `make test-integration` kills one of two in mid-run, and no row or score changes."""

import os
import signal

import numpy as np
import pytest
import soundfile as sf

from xacle.demo.tiny_models import CAPTIONS, make_sound
from xacle.scoring.ray_data import AlignmentScores, main
from xacle.scoring.scorer import Scorer

SECONDS = 1.0


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """48 rows of 12 sounds, each with four captions, and their folder."""
    folder = tmp_path_factory.mktemp("wav")
    names = []
    for number in range(12):
        sound = make_sound(list(CAPTIONS)[number % 4], SECONDS) * (0.2 + number / 15)
        sf.write(folder / f"{number}.wav", sound, 16000)
        names += [f"{number}.wav"] * 4
    return folder, {"wav_file_name": np.array(names), "text": np.array(list(CAPTIONS.values()) * 12), "row": np.arange(48)}


@pytest.fixture(scope="module")
def expected(batch, tiny_folder):
    folder, rows = batch
    return Scorer.from_pretrained(tiny_folder, "cpu").score(
        [folder / name for name in rows["wav_file_name"]], list(rows["text"])
    )


def test_a_batch_gets_scores_and_reasons(batch, tiny_folder, expected):
    folder, rows = batch
    scores = AlignmentScores(tiny_folder, folder, device="cpu")
    found = scores(rows)
    assert list(found) == ["wav_file_name", "text", "row", "pred_score", "error"]
    np.testing.assert_allclose(found["pred_score"], expected, atol=1e-5)
    assert set(found["error"]) == {""}
    stored = [{"bytes": (folder / name).read_bytes(), "path": name} for name in rows["wav_file_name"][:4]]
    stored.append({"bytes": b"no sound", "path": "x.wav"})
    found = scores({"audio": np.array(stored), "caption": np.array([*rows["text"][:4], "rain"])})
    assert "audio" not in found and np.isnan(found["pred_score"][4]) and found["error"][4]
    np.testing.assert_allclose(found["pred_score"][:4], expected[:4], atol=1e-5)
    cut = {"wav_file_name": np.array(["0.wav"] * 2), "text": np.array(["rain"] * 2), "start": np.array([0.5, np.nan])}
    scored = scores(cut)["pred_score"]
    sounds = [sf.read(folder / "0.wav")[0][8000:], folder / "0.wav"]
    np.testing.assert_allclose(scored, scores.scorer.score(sounds, ["rain"] * 2), atol=1e-5)
    with pytest.raises(ValueError, match="rows need the columns wav_file_name and text; they have sound"):
        scores({"sound": np.array(["a.wav"])})


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield ray  # three CPUs: two actors, and one to read with
    ray.shutdown()


@pytest.mark.integration
def test_a_killed_actor_changes_no_row_and_no_score(cluster, batch, tiny_folder, expected, tmp_path):
    folder, rows = batch
    killed = tmp_path / "killed"

    class KilledOnce(AlignmentScores):
        calls = 0

        def __call__(self, batch):
            self.calls += 1
            if self.calls == 2:
                try:
                    killed.open("x").close()
                except FileExistsError:
                    pass
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(batch)

    items = [
        dict(zip(rows, values, strict=True)) for values in zip(*(column.tolist() for column in rows.values()), strict=True)
    ]
    table = cluster.data.from_items(items, override_num_blocks=12)
    scored = table.map_batches(
        KilledOnce,
        fn_constructor_kwargs={"model": str(tiny_folder), "audio_dir": str(folder), "device": "cpu"},
        batch_size=4,
        compute=cluster.data.ActorPoolStrategy(size=2),
    )
    found = sorted(scored.take_all(), key=lambda row: row["row"])
    assert killed.exists()
    assert [row["row"] for row in found] == list(range(48))
    np.testing.assert_allclose([row["pred_score"] for row in found], expected, atol=1e-5)


@pytest.mark.integration
def test_the_script_reads_and_writes_parquet(cluster, batch, tiny_folder, expected, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    folder, rows = batch
    for part in range(2):
        columns = {name: column[part::2] for name, column in rows.items()}
        parquet.write_table(pa.table(columns), tmp_path / f"pairs-{part}.parquet")
    arguments = ["--input", f"{tmp_path}/pairs-*.parquet", "--output", f"{tmp_path}/scores", "--audio-dir", str(folder)]
    main([*arguments, "--model", str(tiny_folder), "--actors", "2", "--rows", "8"])
    found = sorted(parquet.read_table(tmp_path / "scores").to_pylist(), key=lambda row: row["row"])
    assert [row["wav_file_name"] for row in found] == list(rows["wav_file_name"])
    np.testing.assert_allclose([row["pred_score"] for row in found], expected, atol=1e-5)
