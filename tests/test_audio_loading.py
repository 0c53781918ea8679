"""Sounds in every form users have them: files of all kinds, URLs, bytes, dicts, arrays; and the broken ones."""

import base64
import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile as sf
import torch

from xacle.audio_xacle import load_waveform
from xacle.demo.tiny_models import make_sound
from xacle.processing_xacle import XacleFeatureExtractor

RATE = 16000
TONE_RMS = 0.108
# Coding loss as relative error: for PCM one quantization step, for lossy codecs what they lose of `tone()`.
FORMATS = [
    ("wav", "PCM_U8", 2**-7 / TONE_RMS),
    ("wav", "PCM_16", 2**-15 / TONE_RMS),
    ("wav", "PCM_24", 2**-23 / TONE_RMS),
    ("wav", "PCM_32", 1e-7),
    ("wav", "FLOAT", 0.0),
    ("wav", "DOUBLE", 0.0),
    ("flac", "PCM_16", 2**-15 / TONE_RMS),
    ("flac", "PCM_24", 2**-23 / TONE_RMS),
    ("ogg", "VORBIS", 0.1),
    ("mp3", "MPEG_LAYER_III", 0.1),
]


def tone(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """A chord below 3 kHz with soft ends: every rate and codec can carry it."""
    time = np.arange(int(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * frequency * time) for frequency in (220, 660, 1500, 2900)) / 8
    return (wave * np.sin(np.pi * np.clip(time / seconds, 0, 1)) ** 2).astype(np.float32)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize(("suffix", "subtype", "coding_loss"), FORMATS)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_every_format_and_channel_count(tmp_path, suffix, subtype, coding_loss, channels):
    if suffix == "mp3" and channels > 2:
        pytest.skip("mp3 has at most two channels")
    path = tmp_path / f"sound.{suffix}"
    sf.write(path, np.tile(tone()[:, None], (1, channels)), RATE, subtype=subtype)
    waveform = load_waveform(path)
    assert waveform.dtype == np.float32
    assert waveform.shape == (RATE,)
    assert relative_error(waveform, tone()) <= coding_loss + 1e-7


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000])
def test_every_rate(tmp_path, rate):
    sf.write(tmp_path / "sound.wav", tone(rate=rate), rate, subtype="FLOAT")
    from_file = load_waveform(tmp_path / "sound.wav")
    assert from_file.shape == (RATE,)
    assert relative_error(from_file, tone()) < 2e-3
    from_array = load_waveform(tone(rate=rate), sampling_rate=rate)
    assert np.array_equal(from_array, from_file)


@pytest.mark.parametrize("seconds", [0.1, 0.5, 9.99, 10.0, 10.01, 60.0])
def test_every_length(tmp_path, seconds):
    sf.write(tmp_path / "sound.flac", tone(seconds), RATE)
    assert load_waveform(tmp_path / "sound.flac").shape == (int(seconds * RATE),)


def test_every_way_to_hand_over_a_sound(tmp_path):
    path = tmp_path / "sound.wav"
    sf.write(path, tone(), RATE, subtype="FLOAT")
    content = path.read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        forms = [
            path,
            str(path),
            f"http://127.0.0.1:{server.server_port}/sound.wav",
            f"HTTP://127.0.0.1:{server.server_port}/sound.wav",
            content,
            bytearray(content),
            "data:audio/wav;base64," + base64.b64encode(content).decode(),
            {"path": str(path), "bytes": None},
            {"bytes": content, "path": None},
            {"array": tone(), "sampling_rate": RATE},
        ]
        for form in forms:
            np.testing.assert_array_equal(load_waveform(form), tone())
        with pytest.raises(ValueError, match=r"cannot fetch http.*404 File not found.*missing\.wav'$"):
            load_waveform(f"http://127.0.0.1:{server.server_port}/missing.wav")
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_arrays_of_every_type():
    expected = tone()
    for samples in (expected, torch.from_numpy(expected), expected.astype(np.float64), expected.tolist()):
        np.testing.assert_allclose(load_waveform(samples, RATE), expected, atol=1e-7)
    np.testing.assert_allclose(load_waveform((expected * 32768).astype(np.int16), RATE), expected, atol=1e-4)
    np.testing.assert_allclose(load_waveform((expected * 2**31).astype(np.int32), RATE), expected, atol=1e-6)
    np.testing.assert_allclose(load_waveform((expected * 128 + 128).astype(np.uint8), RATE), expected, atol=2e-2)
    np.testing.assert_allclose(load_waveform((expected * 32768 + 32768).astype(np.uint16), RATE), expected, atol=1e-4)
    np.testing.assert_allclose(load_waveform(torch.from_numpy(expected).to(torch.bfloat16), RATE), expected, atol=1e-2)
    stereo = np.stack([expected, np.zeros_like(expected)])
    np.testing.assert_allclose(load_waveform(stereo, RATE), expected / 2, atol=1e-7)
    np.testing.assert_allclose(load_waveform(stereo.T, RATE), expected / 2, atol=1e-7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot decode .*sound.wav"),
        (b"this is no sound at all", "cannot decode .*sound.wav"),
        (None, "cannot decode .*sound.wav"),  # a header without its data
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    path = tmp_path / "sound.wav"
    if content is None:
        sf.write(path, tone(), RATE)
        content = path.read_bytes()[:20]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_waveform(path)


@pytest.mark.parametrize("content", [b"", b"ID3nothing", bytes(5000), b"\xff\xfb\x90\x00" * 300])
def test_a_broken_mp3_is_not_reported_as_missing(tmp_path, content):
    path = tmp_path / "sound.mp3"
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(ValueError, match=r"cannot decode .*: .*damaged or no audio at all") as error:
            load_waveform(source)
        assert "exist" not in str(error.value) and "pipe" not in str(error.value)


def test_a_file_without_a_header_is_named(tmp_path):
    (tmp_path / "sound.raw").write_bytes(bytes(3200))
    with pytest.raises(ValueError, match=r"cannot decode .*sound\.raw: it has no header"):
        load_waveform(tmp_path / "sound.raw")


@pytest.mark.parametrize("kept", [0.33, 0.9, 0.985])
@pytest.mark.parametrize(
    ("suffix", "subtype", "message"),
    [
        ("wav", "PCM_16", "is cut off"),
        ("ogg", "VORBIS", "is cut off"),
        ("ogg", "OPUS", "is cut off"),
        ("flac", "PCM_16", "cannot decode"),
    ],
)
def test_files_that_end_too_early_are_named(tmp_path, suffix, subtype, message, kept):
    path = tmp_path / f"sound.{suffix}"
    sf.write(path, make_sound("rain"), RATE, subtype=subtype)
    assert load_waveform(path).shape == (10 * RATE,)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=f"sound.{suffix}.*{message}|{message}.*sound.{suffix}"):
        load_waveform(path)


def test_a_short_mp3_and_streamed_wavs(tmp_path, transformers_log):
    path = tmp_path / "sound.mp3"
    sf.write(path, make_sound("rain"), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    load_waveform(path)
    assert "sound.mp3 is cut off or damaged" in transformers_log.text
    sf.write(tmp_path / "stream.wav", tone(), RATE)
    content = bytearray((tmp_path / "stream.wav").read_bytes())
    content[40:44] = b"\xff\xff\xff\xff"  # the size of a wav written to a pipe is not known in advance
    assert load_waveform(bytes(content)).shape == (RATE,)


def test_files_without_sound_are_named(tmp_path):
    sf.write(tmp_path / "silent.wav", np.zeros(0, dtype=np.float32), RATE)
    with pytest.raises(ValueError, match=r"silent\.wav holds no samples"):
        load_waveform(tmp_path / "silent.wav")
    sf.write(tmp_path / "nan.wav", np.array([0.0, np.nan] * 8000, dtype=np.float32), RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"nan\.wav holds NaN or infinite samples"):
        load_waveform(tmp_path / "nan.wav")
    with pytest.raises(FileNotFoundError, match=r"no audio file at 'nowhere\.wav'"):
        load_waveform("nowhere.wav")
    with pytest.raises(IsADirectoryError, match="is a folder, not an audio file"):
        load_waveform(tmp_path)
    with pytest.raises(ValueError, match="m4a"):
        (tmp_path / "sound.m4a").write_bytes(b"\x00\x00\x00 ftypM4A ")
        load_waveform(tmp_path / "sound.m4a")


@pytest.mark.parametrize(
    ("audio", "error", "message"),
    [
        (np.zeros(0, dtype=np.float32), ValueError, "holds no samples"),
        (np.array([np.inf] * 100, dtype=np.float32), ValueError, "NaN or infinite"),
        (np.zeros((2, 0), dtype=np.float32), ValueError, "holds no samples"),
        (np.zeros((2, 3, 4), dtype=np.float32), ValueError, r"\[samples\] or \[channels, samples\]"),
        (np.array(["a", "b"]), ValueError, "must hold numbers"),
        (np.zeros(100, dtype=np.int64), ValueError, "int64, which has no range"),
        ({"waveform": [0.0]}, ValueError, "needs 'array', 'bytes' or 'path'"),
        (3.5, TypeError, "got float"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_wrong_input_is_refused_with_a_reason(audio, error, message):
    with pytest.raises(error, match=message):
        load_waveform(audio, RATE)
    for rate in (0, float("inf"), float("nan"), 1e-3, True, "16000"):
        with pytest.raises(ValueError, match="sampling rate must be between"):
            load_waveform(make_sound("rain", 0.1), sampling_rate=rate)


def test_a_file_may_have_more_channels_than_samples(tmp_path):
    sf.write(tmp_path / "sound.wav", np.arange(18).reshape(3, 6) / 32, RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_waveform(tmp_path / "sound.wav"), [2.5 / 32, 8.5 / 32, 14.5 / 32])


def test_an_open_file_can_be_read_twice(tmp_path):
    sf.write(tmp_path / "sound.wav", tone(), RATE, subtype="FLOAT")
    with (tmp_path / "sound.wav").open("rb") as file:
        np.testing.assert_array_equal(load_waveform(file), tone())
        np.testing.assert_array_equal(load_waveform(file), tone())


def test_suspicious_loudness_is_warned_of(tmp_path, transformers_log):
    load_waveform((tone() * 32767).astype(np.int32), RATE)
    assert "int32 with the range of int16" in transformers_log.text
    sf.write(tmp_path / "loud.wav", tone() * 1000, RATE, subtype="FLOAT")
    transformers_log.clear()
    loaded = load_waveform(tmp_path / "loud.wav")
    XacleFeatureExtractor()(load_waveform(loaded, RATE), RATE)
    (record,) = transformers_log.records  # no second warning when a loaded sound is passed on
    assert "loud.wav has values up to" in record.message


def test_hardly_any_sound_is_warned_of(tmp_path, transformers_log):
    sf.write(tmp_path / "click.wav", tone()[:1], RATE)
    assert load_waveform(tmp_path / "click.wav").shape == (1,)
    load_waveform(tone(0.1), RATE)
    (record,) = transformers_log.records
    assert "click.wav lasts 0.0625 ms" in record.message
