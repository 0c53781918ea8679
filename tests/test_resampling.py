"""The resampler is a setting of the feature extractor: soxr, or the filter of the authors' system."""

import math
import wave

import numpy as np
import pytest
import torch

from xacle.audio_xacle import load_waveform, resample_sinc_hann
from xacle.processing_xacle import XacleFeatureExtractor, XacleProcessor

RATES = [8000, 11025, 22050, 24000, 32000, 44100, 48000, 96000]


def windowed_sinc(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """The published formula, sample by sample in float64: torchaudio's with lowpass_filter_width 6 and rolloff 0.99."""
    cutoff = min(rate, target) / 2 * 0.99  # Hz
    output = np.zeros(math.ceil(len(samples) * target / rate))
    reach = 6 / (2 * cutoff)  # seconds: six zero crossings
    times = np.arange(len(samples)) / rate
    for index in range(len(output)):
        near = np.flatnonzero(np.abs(times - index / target) < reach)
        crossings = 2 * cutoff * (times[near] - index / target)
        weights = 2 * cutoff / rate * np.sinc(crossings) * np.cos(np.pi * crossings / 12) ** 2
        output[index] = samples[near] @ weights
    return output


@pytest.mark.parametrize("rate", RATES)
def test_the_authors_filter_is_the_published_formula(rate):
    samples = np.random.default_rng(rate).uniform(-1, 1, 1357)
    expected = windowed_sinc(samples, rate, 16000)
    resampled = resample_sinc_hann(torch.tensor(samples, dtype=torch.float32), rate)
    assert resampled.shape == expected.shape
    assert np.abs(resampled.numpy() - expected).max() < 1e-6
    exact = resample_sinc_hann(torch.tensor(samples), rate)
    assert np.abs(exact.numpy() - expected).max() < 1e-12


def test_a_rate_without_a_common_factor():
    samples = np.random.default_rng(0).uniform(-1, 1, 4001)
    resampled = resample_sinc_hann(torch.tensor(samples), 47999)
    assert np.abs(resampled.numpy() - windowed_sinc(samples, 47999, 16000)).max() < 1e-12


def test_many_waveforms_at_once():
    waveforms = torch.randn(2, 3, 5000)
    together = resample_sinc_hann(waveforms, 44100)
    assert together.shape == (2, 3, math.ceil(5000 * 16000 / 44100))
    for index in np.ndindex(2, 3):
        torch.testing.assert_close(together[index], resample_sinc_hann(waveforms[index], 44100), rtol=0, atol=1e-6)


def test_the_extractor_uses_and_saves_its_resampler(tmp_path, tiny_folder):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 22050).astype(np.float32)
    with wave.open(str(tmp_path / "noise.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(44100)
        file.writeframes((samples * 32768).astype("<i2").tobytes())
    extractor = XacleFeatureExtractor(resampler="sinc_hann")
    expected = resample_sinc_hann(torch.tensor((samples * 32768).astype("<i2") / 32768, dtype=torch.float32), 44100).numpy()
    given = [tmp_path / "noise.wav", (tmp_path / "noise.wav").read_bytes(), {"path": str(tmp_path / "noise.wav")}]
    for waveform in extractor.fetch_audio(given):
        np.testing.assert_allclose(waveform, expected, atol=1e-6)
    assert np.abs(load_waveform(given[0]) - expected).max() > 0.01  # soxr cuts higher up
    XacleProcessor(extractor, XacleProcessor.from_pretrained(tiny_folder).tokenizer).save_pretrained(tmp_path / "saved")
    assert XacleProcessor.from_pretrained(tmp_path / "saved").feature_extractor.resampler == "sinc_hann"
    assert XacleProcessor.from_pretrained(tiny_folder).feature_extractor.resampler == "soxr"
    with pytest.raises(ValueError, match="resampler must be one of soxr, sinc_hann, got 'sox'"):
        XacleFeatureExtractor(resampler="sox")


def test_converted_checkpoints_hear_as_the_authors_system_does(released_folder):
    assert XacleProcessor.from_pretrained(released_folder).feature_extractor.resampler == "sinc_hann"
