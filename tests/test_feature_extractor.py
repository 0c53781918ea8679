"""The fbank front end: against the authors' numbers, against an independent float64 derivation, and at its edges."""

import json

import numpy as np
import pytest
import torch
from conftest import GOLDEN, REFERENCE_ARITHMETIC

from xacle.audio_xacle import fbank
from xacle.demo.tiny_models import make_sound
from xacle.processing_xacle import XacleFeatureExtractor

extractor = XacleFeatureExtractor()


def kaldi_fbank_in_float64(waveform: np.ndarray) -> np.ndarray:
    """Kaldi's fbank written from its definition, frame by frame, as a second opinion."""
    mel = lambda hertz: 1127 * np.log(1 + hertz / 700)  # noqa: E731
    edges = np.linspace(mel(20), mel(8000), 130)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    bins = mel(np.arange(257) * 16000 / 512)
    rows = []
    for start in range(0, len(waveform) - 399, 160):
        frame = waveform[start : start + 400].astype(np.float64) * 32768
        frame -= frame.mean()
        frame = np.append(frame[0] * (1 - 0.97), frame[1:] - 0.97 * frame[:-1]) * window
        power = np.abs(np.fft.rfft(frame, 512)) ** 2
        energies = [
            np.sum(power * np.clip(np.minimum((bins - low) / (mid - low), (high - bins) / (high - mid)), 0, None))
            for low, mid, high in zip(edges, edges[1:], edges[2:], strict=False)
        ]
        rows.append(np.log(np.maximum(energies, np.finfo(np.float32).eps)))
    return np.array(rows)


def test_equals_the_authors_fbank(golden):
    features = extractor(GOLDEN / "short_3s.wav", return_tensors="pt")["input_features"][0]
    assert features.shape == (998, 128)
    torch.testing.assert_close(features[:304], golden["fbank"], rtol=0, atol=1e-4)
    torch.testing.assert_close(features[304:], torch.full((694, 128), -2.391693), rtol=0, atol=1e-6)


def test_equals_the_authors_fbank_on_every_clip_tones_included(shared, run_python):
    code = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file
from xacle.audio_xacle import mel_filter_bank, povey_window
from xacle.processing_xacle import XacleFeatureExtractor
folder = Path(sys.argv[1])
expected = load_file(folder / "tmu_tiny/golden.safetensors")["waveforms_fbank"]
constants = load_file(folder / "beats_tiny/fbank_constants.safetensors")
assert torch.equal(mel_filter_bank(128)[:256].T, constants["mel_bank"])
assert torch.equal(povey_window(), constants["povey_window"])
clips = [folder / f"tmu_tiny/audio/{name}.wav" for name in ("noise_bursts", "chirp", "short_3s", "mix_10s")]
features = XacleFeatureExtractor()(clips, return_tensors="pt")["input_features"]
print((features - expected).abs().max().item())
"""
    difference = float(run_python(code, shared / "golden", env=REFERENCE_ARITHMETIC, package=True))
    assert difference < 1e-6  # one unit in the last place


def test_equals_an_independent_derivation():
    waveform = make_sound("rain", seconds=1.0)
    ours = fbank(torch.from_numpy(waveform)[None])[0].numpy()
    np.testing.assert_allclose(ours, kaldi_fbank_in_float64(waveform), rtol=0, atol=2e-3)


def test_a_clip_has_the_same_fbank_in_any_batch(sounds):
    together = extractor([sound for sound, _ in sounds], sampling_rate=16000, return_tensors="pt")["input_features"]
    for (sound, _), features in zip(sounds, together, strict=True):
        alone = extractor(sound, sampling_rate=16000, return_tensors="pt")["input_features"][0]
        # Equal up to the last place, in the energies: the log blows up rounding noise of empty bins.
        torch.testing.assert_close(alone, features, rtol=0, atol=1e-5)


def test_autocast_does_not_touch_the_fbank():
    waveforms = torch.from_numpy(make_sound("rain", seconds=1.0))[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = fbank(waveforms)
    assert features.dtype == torch.float32
    assert torch.equal(features, fbank(waveforms))


def test_padding_choices():
    long, short = make_sound("rain", 2.0), make_sound("rain", 1.0)
    shapes = {
        "max_length": [(998, 128), (998, 128)],
        "longest": [(198, 128), (198, 128)],
        True: [(198, 128), (198, 128)],
        False: [(198, 128), (98, 128)],
    }
    for padding, expected in shapes.items():
        features = extractor([long, short], sampling_rate=16000, padding=padding)["input_features"]
        assert [feature.shape for feature in features] == expected


def test_the_mask_marks_frames_with_sound():
    sounds = [make_sound("rain", 10.0), make_sound("rain", 3.0)]
    batch = extractor(sounds, sampling_rate=16000, return_attention_mask=True, return_tensors="pt")
    assert batch["attention_mask"].sum(-1).tolist() == [998, 300]
    assert "attention_mask" not in extractor(sounds, sampling_rate=16000)


def test_a_long_clip_is_cut_with_a_warning(transformers_log):
    features = extractor(make_sound("rain", 12.0), sampling_rate=16000, return_tensors="pt")["input_features"]
    assert features.shape == (1, 998, 128)
    assert "longer than 10 s" in transformers_log.text


def test_the_methods_of_transformers_are_kept():
    batch = extractor.pad({"input_features": [np.ones((2, 128)), np.ones((3, 128))]}, padding=True, return_tensors="np")
    assert batch["input_features"].shape == (2, 3, 128)


def test_other_rates_are_resampled():
    rate = 44100
    time = np.arange(rate) / rate
    tone = np.sin(2 * np.pi * 1000 * time).astype(np.float32)
    expected = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    resampled = extractor.fetch_audio(tone, sampling_rate=rate)
    assert len(resampled) == 16000
    np.testing.assert_allclose(resampled[500:-500], expected[500:-500], atol=1e-3)


def test_save_and_load(tmp_path):
    XacleFeatureExtractor(fbank_mean=10.0).save_pretrained(tmp_path)
    assert XacleFeatureExtractor.from_pretrained(tmp_path).fbank_mean == 10.0
    assert "mel_filters" not in json.loads((tmp_path / "preprocessor_config.json").read_text())


def test_edges():
    with pytest.raises(ValueError, match="too short for one patch"):
        extractor(np.zeros(2799, dtype=np.float32), sampling_rate=16000, padding=False)
    assert extractor(np.zeros(2800, dtype=np.float32), sampling_rate=16000, padding=False)["input_features"][0].shape == (
        16,
        128,
    )
    with pytest.raises(ValueError, match="works at 16000 Hz"):
        XacleFeatureExtractor(sampling_rate=48000)
    with pytest.raises(ValueError, match="no audio was given"):
        extractor([])


def test_windows_are_averaged_by_duration():
    samples = [len(window) for window in extractor.windows(np.zeros(400000, dtype=np.float32))]
    scores = torch.tensor([[1.0, 8.0], [2.0, 4.0], [7.0, 0.0]])  # of three windows with two captions
    average = extractor.average_windows(scores, samples)
    assert average.dtype == np.float32
    np.testing.assert_allclose(average, [0.4 * 1 + 0.4 * 2 + 0.2 * 7, 0.4 * 8 + 0.4 * 4], rtol=1e-6)
    assert extractor.average_windows([1.0, 2.0, 7.0], samples) == average[0]
    assert extractor.average_windows([np.float32(0.1)], samples[:1]) == np.float32(0.1)
