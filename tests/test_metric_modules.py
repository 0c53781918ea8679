"""`metrics/`: the modules that `evaluate.load` takes, loaded as a user loads them and without a network."""

import socket

import evaluate
import numpy as np
import pytest
import soundfile as sf
import soxr
import torch
from conftest import ROOT
from datasets import Dataset

from xacle.demo.tiny_models import CAPTIONS, make_sound
from xacle.scoring.metrics import alignment_metrics
from xacle.scoring.scorer import Scorer

SOUNDS = [make_sound(name, 2.0) for name in CAPTIONS]
TEXTS = list(CAPTIONS.values())


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a network is asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`evaluate.load` of a module of this repository by a relative path, as its guide shows it."""
    monkeypatch.chdir(ROOT)
    return lambda name, *model, **options: evaluate.load(f"./metrics/{name}", *model, cache_dir=str(tmp_path), **options)


# --- xacle_metric --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [False, True])
def test_the_metric_gives_the_numbers_of_the_challenge(load, in_memory):
    metric = load("xacle_metric", keep_in_memory=in_memory)
    rng = np.random.default_rng(0)
    ratings = rng.integers(0, 11, 60) / 1.0  # with ties
    predictions = ratings + rng.normal(0, 2, 60)
    expected = alignment_metrics(predictions, ratings)
    assert metric.compute(predictions=predictions, references=ratings) == expected
    for start in range(0, 60, 7):
        rows = slice(start, start + 7)
        metric.add_batch(predictions=torch.from_numpy(predictions[rows]), references=ratings[rows].tolist())
    assert metric.compute() == expected
    constant = metric.compute(predictions=[3, 3, 3], references=[1, 2, 3])
    assert constant == alignment_metrics([3, 3, 3], [1, 2, 3]) and constant["SRCC"] == 0


def test_the_metric_needs_no_xacle(run_python, tmp_path):
    code = f"""
import evaluate
metric = evaluate.load({str(ROOT / "metrics/xacle_metric")!r}, cache_dir={str(tmp_path)!r})
print(metric.compute(predictions=[7.1, 2.0, 5.5], references=[8.0, 1.5, 4.0]))
"""
    assert eval(run_python(code)) == alignment_metrics([7.1, 2.0, 5.5], [8.0, 1.5, 4.0])


def test_the_metric_refuses_what_has_no_value(load):
    metric = load("xacle_metric")
    with pytest.raises(ValueError, match="at least 2 pairs"):
        metric.compute(predictions=[1.0], references=[1.0])
    for predictions in ([1.0, float("nan")], [float("inf"), 1.0]):
        with pytest.raises(ValueError, match="finite"):
            metric.compute(predictions=predictions, references=[1.0, 2.0])


# --- xacle_score ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(tiny_folder):
    scores = Scorer.from_pretrained(tiny_folder, device="cpu").score(SOUNDS, TEXTS)
    assert scores.std() > 1e-3
    return scores


@pytest.fixture
def files(tmp_path):
    """The sounds as files."""
    paths = [tmp_path / f"{name}.wav" for name in CAPTIONS]
    for path, sound in zip(paths, SOUNDS, strict=True):
        sf.write(path, sound, 16000, subtype="FLOAT")
    return paths


@pytest.mark.parametrize("in_memory", [False, True])
def test_scores_are_the_scorers(load, tiny_folder, files, expected, in_memory):
    measurement = load("xacle_score", str(tiny_folder), device="cpu", keep_in_memory=in_memory)
    result = measurement.compute(audio=files, text=TEXTS)
    np.testing.assert_allclose(result["scores"], expected, atol=1e-5)
    assert result["mean_score"] == pytest.approx(expected.mean(), abs=1e-5)
    for sound, text in zip(files[:2], TEXTS, strict=False):
        measurement.add(audio=str(sound), text=text)
    measurement.add_batch(audio=SOUNDS[2:], text=TEXTS[2:])
    np.testing.assert_allclose(measurement.compute(batch_size=2)["scores"], expected, atol=1e-5)


def test_sounds_come_in_every_form(load, tiny_folder, files, expected):
    measurement = load("xacle_score")
    stereo = np.stack([SOUNDS[0], SOUNDS[0]])
    forms = [
        SOUNDS[0],
        SOUNDS[0].tolist(),
        torch.from_numpy(stereo),
        (SOUNDS[0] * 32767).round().astype(np.int16),
        {"array": SOUNDS[0].astype(np.float64), "sampling_rate": 16000, "path": None},
        {"array": soxr.resample(SOUNDS[0], 16000, 48000), "sampling_rate": 48000},
        {"path": str(files[0]), "bytes": None},
        {"path": "elsewhere.wav", "bytes": files[0].read_bytes()},
        files[0].read_bytes(),
    ]
    result = measurement.compute(audio=forms, text=[TEXTS[0]] * len(forms), model=str(tiny_folder))
    np.testing.assert_allclose(result["scores"], expected[0], atol=0.02)
    np.testing.assert_allclose(np.delete(result["scores"], [3, 5]), expected[0], atol=1e-5)


def test_columns_of_a_data_set(load, tiny_folder, files, expected):
    table = Dataset.from_dict({"file": list(map(str, files)), "caption": TEXTS})
    result = load("xacle_score", str(tiny_folder)).compute(audio=table["file"], text=table["caption"])
    np.testing.assert_allclose(result["scores"], expected, atol=1e-5)


def test_wrong_calls_are_explained_and_cost_nothing_else(load, tiny_folder, files, expected):
    measurement = load("xacle_score", str(tiny_folder))
    for columns, message in (
        ({"audio": files[:1], "text": TEXTS}, "as many captions"),
        ({"audio": files}, "a list of sounds"),
        ({"audio": str(files[0]), "text": TEXTS[0]}, "a list of sounds"),
        ({"audio": files[:1], "text": [None]}, "pair 0 of the batch: its caption must be a text"),
        ({"audio": [SOUNDS[0], np.full(1600, np.nan)], "text": TEXTS[:2]}, "pair 1 of the batch: the audio array holds NaN"),
        ({"audio": [files[0], "missing.wav"], "text": TEXTS[:2]}, r"(?s)cannot be scored: 1 of 2.*pair 1: no audio file"),
    ):
        with pytest.raises(ValueError, match=message):
            measurement.compute(**columns)
    np.testing.assert_allclose(measurement.compute(audio=files, text=TEXTS)["scores"], expected, atol=1e-5)
    with pytest.raises(ValueError, match="which model"):
        load("xacle_score").compute(audio=files, text=TEXTS)
    with pytest.raises(FileNotFoundError, match="no model folder at 'nowhere'"):
        load("xacle_score", "nowhere")
