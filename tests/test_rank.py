"""`xacle rank` and `best_of_n`: the best of several sounds for one caption."""

import csv

import numpy as np
import pytest
import soundfile as sf
from test_scoring import command, refusal

from xacle.demo.tiny_models import make_sound
from xacle.scoring.ranking import best_of_n
from xacle.scoring.scorer import Scorer

TEXT = "Rain falls steadily on a roof"
NAMES = ("siren", "rain", "clock", "engine")


@pytest.fixture(scope="module")
def scorer(tiny_folder):
    return Scorer.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture
def takes(tmp_path):
    """A folder of four sounds, with something in it that is none."""
    folder = tmp_path / "takes"
    folder.mkdir()
    for name in NAMES:
        sf.write(folder / f"{name}.wav", make_sound(name, 2.0), 16000)
    (folder / "notes.txt").write_text("no sound")
    return folder


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_sounds_come_sorted_by_the_scores_they_have_alone(scorer):
    waves = [make_sound(name, 2.0) for name in NAMES]
    candidates = best_of_n(scorer, TEXT, waves)
    alone = scorer.score(waves, [TEXT] * 4)
    assert [candidate.index for candidate in candidates] == np.argsort(-alone).tolist()
    assert [candidate.rank for candidate in candidates] == [1, 2, 3, 4]
    np.testing.assert_allclose([candidate.score for candidate in candidates], sorted(alone, reverse=True), atol=1e-5)


def test_equal_sounds_share_a_rank_and_bad_ones_come_last_without_one(scorer):
    rain, siren = make_sound("rain", 1.0), {"array": make_sound("siren", 1.0), "sampling_rate": 16000}
    candidates = best_of_n(scorer, TEXT, [np.full(16000, np.nan), rain, siren, rain, "missing.wav"])
    assert [candidate.index for candidate in candidates] in ([1, 3, 2, 0, 4], [2, 1, 3, 0, 4])
    ranks = [candidate.rank for candidate in candidates]
    assert ranks in ([1, 1, 3, None, None], [1, 2, 2, None, None])
    assert "NaN" in str(candidates[3].error) and "missing.wav" in str(candidates[4].error)
    assert candidates[3].score is None
    with pytest.raises(ValueError, match="nothing to rank"):
        best_of_n(scorer, TEXT, [])
    for one in ("rain.wav", b"RIFF", {"array": rain, "sampling_rate": 16000}, rain):
        with pytest.raises(ValueError, match="pass a list of sounds"):
            best_of_n(scorer, TEXT, one)
    with pytest.raises(ValueError, match=r"pass a list of sounds, .*'rain\.wav'"):
        scorer.score("rain.wav", TEXT)
    with pytest.raises(ValueError, match="the caption must be a text"):
        best_of_n(scorer, " ", [rain])


def test_a_folder_is_ranked(tiny_folder, scorer, takes, tmp_path):
    output = tmp_path / "ranked.csv"
    (takes / "notes.txt").touch()
    (takes / "more").mkdir()
    (takes / ".hidden").touch()
    # The folder, and again one of its files: each sound counts once.
    result = command("rank", "--model", tiny_folder, "--text", TEXT, takes, takes / "rain.wav", "--output", output)
    assert result.returncode == 0, result.stderr
    files = [takes / f"{name}.wav" for name in sorted(NAMES)]
    scores = scorer.score(files, [TEXT] * 4)
    order = [str(files[index]) for index in np.argsort(-scores)]
    rows = read(output)
    assert [(int(row["rank"]), row["wav_file_name"], row["text"]) for row in rows] == [
        (rank, name, TEXT) for rank, name in enumerate(order, start=1)
    ]
    np.testing.assert_allclose([float(row["pred_score"]) for row in rows], sorted(scores, reverse=True), atol=1e-5)
    assert "2 in the folder" in result.stderr and "more'" in result.stderr
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["rank", "score", "sound"]
    assert [line.split(maxsplit=2)[2] for line in lines] == order


def test_bad_files_are_reported_and_the_others_ranked(tiny_folder, takes, tmp_path):
    (takes / "broken.wav").write_bytes(b"RIFF this is no sound")
    arguments = ("rank", "--model", tiny_folder, "--text", TEXT, takes, "missing.wav", "--output", tmp_path / "ranked.csv")
    result = command(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert "broken.wav" in result.stderr and "no audio file at 'missing.wav'" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stdout.splitlines()) == 5 and len(read(tmp_path / "ranked.csv")) == 4
    assert command(*arguments, "--on-error", "skip", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", TEXT, "missing.wav"], "none of the sounds can be scored"),
        (["--text", TEXT, "."], "holds no sounds"),
        (["--text", " ", "missing.wav"], "the caption is empty"),
        (["--text", TEXT, "a.wav", "--output", "a.txt"], "must end in .csv"),
        (["--text", TEXT], "Missing argument"),
    ],
)
def test_wrong_calls_are_explained(tiny_folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refusal("rank", "--model", tiny_folder, *arguments)
