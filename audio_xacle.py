"""Any sound -> mono waveform at 16 kHz -> Kaldi's fbank, as BEATs was trained on.

sound, any rate or channels --decode, average channels, resample--> [160000] --fbank--> [998, 128]
"""

import base64
import io
import math
import os
import re
from functools import lru_cache
from numbers import Real

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.utils import httpx
from transformers.utils import is_soundfile_available, is_soxr_available, logging

if is_soundfile_available():
    import soundfile as sf
if is_soxr_available():
    import soxr

logger = logging.get_logger(__name__)

# Kaldi's fbank as BEATs was trained on (16 kHz).
SAMPLING_RATE = 16000
FRAME_LENGTH = 400  # 25 ms
HOP_LENGTH = 160  # 10 ms
FFT_LENGTH = 512
PREEMPHASIS = 0.97
LOW_FREQUENCY, HIGH_FREQUENCY = 20.0, 8000.0
INT16_SCALE = 2.0**15  # Kaldi expects the range of 16-bit samples, not [-1, 1]
LOG_FLOOR = 1.1920928955078125e-07  # float32 epsilon

URL_TIMEOUT_SECONDS = 30.0
MIN_RATE, MAX_RATE = 1000, 768000  # Hz; beyond them a header or an argument is wrong
MAX_OGG_PAGE = 27 + 255 + 255 * 255  # bytes
MIN_CLIP_SECONDS = 0.1  # shorter ones are warned of
MAX_AMPLITUDE = 4.0  # of floats; louder ones are warned of
MAX_CLIP_SECONDS = 10.0  # the clip length people rated; [160000] samples, [998, 128] fbank
MAX_FBANK_BATCH = 32  # bounds the memory of the frames, 2 MB a clip
MIN_SAMPLES = FRAME_LENGTH + 15 * HOP_LENGTH  # 16 frames = one patch of BEATs


# --- Sound -> waveform ---------------------------------------------------------------------------------------------------


class Waveform(np.ndarray):
    """What `load_waveform` returns: an ordinary array, which is not warned of again when it is passed on."""


def load_waveform(audio, sampling_rate: int | None = None, target_rate: int = SAMPLING_RATE) -> Waveform:
    """Any sound -> mono float32 waveform `[samples]` at `target_rate`, in [-1, 1].

    Clips under 0.1 s, and values far beyond [-1, 1], are warned of.

    Args:
        audio: A path, an `http(s)://` URL, a `data:` URI, an audio file's bytes or the open file, a dict of `datasets`
            (`{"array", "sampling_rate"}`, `{"bytes"}` or `{"path"}`), or an array, tensor or list of samples. Arrays may be
            `[samples]`, `[channels, samples]` or `[samples, channels]` (the shorter axis is the channels); integer
            arrays are scaled by their type's range. Files may be wav, flac, ogg, mp3 and whatever else libsndfile reads.
        sampling_rate: The rate of an array, in Hz; `target_rate` is assumed, with a warning, if it is missing.
        target_rate: The rate to return, in Hz: 16 kHz, which BEATs works at, unless told otherwise.

    Raises:
        FileNotFoundError, IsADirectoryError: if a path does not exist, or is a folder.
        ValueError: if the sound cannot be decoded, is empty, or holds NaN or infinite samples. The message names the file.
        TypeError: if `audio` is of another type.
    """
    if isinstance(audio, dict):
        if audio.get("array") is not None:
            return load_waveform(audio["array"], audio.get("sampling_rate") or sampling_rate, target_rate)
        if audio.get("bytes") is not None:
            return load_waveform(audio["bytes"], target_rate=target_rate)
        if audio.get("path") is not None:
            return load_waveform(audio["path"], target_rate=target_rate)
        raise ValueError(f"an audio dict needs 'array', 'bytes' or 'path', got the keys {sorted(audio)}")
    if hasattr(audio, "read"):
        if audio.seekable():
            audio.seek(0)
        audio = audio.read()
    if isinstance(audio, (str, os.PathLike, bytes, bytearray, memoryview)):
        with open_sound(audio) as sound:
            name, sampling_rate = sound.xacle_name, sound.samplerate
            try:
                samples = sound.read(dtype="float32", always_2d=True).mean(axis=1)
            except sf.LibsndfileError as error:
                raise ValueError(_undecodable(name, error)) from error
            if len(samples) < 0.99 * sound.frames:
                message = f"{name} is cut off or damaged: it announces {sound.frames} samples and holds {len(samples)}"
                if sound.format != "MP3":
                    raise ValueError(f"{message}; copy or export it again")
                logger.warning(message)  # only an estimate where an mp3 has no index
    elif isinstance(audio, (np.ndarray, torch.Tensor, list, tuple)):
        name, samples = "the audio array", audio
    else:
        raise TypeError(f"audio must be a path, URL, bytes, dict, array or tensor, got {type(audio).__name__}")
    waveform = _resample(_to_mono(samples, name), sampling_rate, target_rate)
    if waveform.size == 0:
        raise ValueError(f"{name} holds no samples")
    if not np.isfinite(waveform).all():
        raise ValueError(f"{name} holds NaN or infinite samples; re-export it")
    if not isinstance(audio, Waveform):
        _warn_of(waveform, len(waveform) / target_rate, name)
    return waveform.view(Waveform)


def _warn_of(waveform: np.ndarray, seconds: float, name: str) -> None:
    if seconds < MIN_CLIP_SECONDS:
        logger.warning(f"{name} lasts {1000 * seconds:.3g} ms: nearly all that is scored is the silence it is padded with")
    if (peak := np.abs(waveform).max()) > MAX_AMPLITUDE:
        logger.warning(
            f"{name} has values up to {peak:.0f}, where [-1, 1] is expected; divide them, or pass integers as an integer array"
        )


def open_sound(source):
    """Open a sound given by path, URL, `data:` URI or bytes, as a `soundfile.SoundFile` whose `xacle_name` says what it is.

    soundfile rather than whatever else is installed: a score must not depend on the decoder.

    Raises:
        FileNotFoundError, ValueError: see [`load_waveform`]. A wav or ogg file that ends before its end is refused.
    """
    if not (is_soundfile_available() and is_soxr_available()):
        raise ImportError("reading audio files needs soundfile and soxr: `pip install soundfile soxr`")
    name, file = _locate(source)
    try:
        sound = sf.SoundFile(file)
    except (sf.LibsndfileError, TypeError) as error:  # the latter for .raw files, which have no header
        raise ValueError(_undecodable(name, error)) from error
    sound.xacle_name = name
    # libsndfile reads what there is and only notes what is missing. (Streamed wavs declare a size of 0 or 2**32 - 1.)
    wav_size = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, flags=re.MULTILINE)
    if (wav_size and 1.01 * int(wav_size[2]) < int(wav_size[1]) < 2**31 - 1) or _lacks_end(sound.format, file):
        sound.close()
        raise ValueError(f"{name} is cut off: it ends before the end its header announces; copy or export it again")
    return sound


def _lacks_end(container: str, file: str | io.BytesIO) -> bool:
    """Whether an Ogg file stops before the page that is marked as its last (RFC 3533, section 6)."""
    if container != "OGG":
        return False
    if isinstance(file, str):
        with open(file, "rb") as opened:
            opened.seek(max(0, os.path.getsize(file) - MAX_OGG_PAGE))
            tail = opened.read()
    else:
        tail = bytes(file.getbuffer()[-MAX_OGG_PAGE:])
    page = tail.rfind(b"OggS")
    sizes = tail[page + 27 : page + 27 + tail[page + 26]] if 0 <= page < len(tail) - 26 else b""
    complete = sizes and len(tail) >= page + 27 + len(sizes) + sum(sizes)
    return not (complete and tail[page + 5] & 4)


def _locate(source) -> tuple[str, str | io.BytesIO]:
    """Path, URL, data URI or bytes -> a name for messages, and what soundfile opens."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"the audio given as {len(source)} bytes", io.BytesIO(source)
    source = os.fspath(source)
    if re.match("data:", source, re.IGNORECASE):
        return f"the audio given as '{source[:40]}...'", io.BytesIO(base64.b64decode(source.partition(",")[2]))
    if re.match("https?://", source, re.IGNORECASE):
        try:
            response = httpx.get(source, follow_redirects=True, timeout=URL_TIMEOUT_SECONDS)
            response.raise_for_status()
        except httpx.HTTPError as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]  # the rest is a link to what 404 means
            raise ValueError(f"cannot fetch {source}: {reason}") from error
        return source, io.BytesIO(response.content)
    if os.path.isdir(source):
        raise IsADirectoryError(f"'{source}' is a folder, not an audio file")
    if not os.path.isfile(source):
        raise FileNotFoundError(f"no audio file at '{source}'")
    return source, source


def _undecodable(name: str, error: Exception) -> str:
    reason = re.sub(r"^Error (: |opening .*?: )", "", str(error)).rstrip(".")
    if reason.startswith("File does not exist"):  # what libsndfile says of an mp3 without a frame, too
        reason = "no audio is found in it"
    if isinstance(error, TypeError):
        reason = "it has no header"
    return (
        f"cannot decode {name}: {reason}. It may be empty, damaged or no audio at all; "
        "wav, flac, ogg and mp3 are read (convert others, e.g. `ffmpeg -i in.m4a out.wav`)"
    )


def _to_mono(samples, name: str) -> np.ndarray:
    """Array, tensor or list of samples, one channel or several -> float32 `[samples]`. `name` is for messages."""
    integers_in_a_list = isinstance(samples, (list, tuple))
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    waveform = np.asarray(samples)
    if waveform.dtype.kind not in "iuf" or waveform.ndim not in (1, 2):
        raise ValueError(
            "an audio array must hold numbers and be [samples] or [channels, samples], got the shape "
            f"{list(waveform.shape)} of {waveform.dtype}"
        )
    if waveform.dtype.kind in "iu" and not integers_in_a_list:
        if waveform.dtype.itemsize > 4:
            raise ValueError(f"{name} is {waveform.dtype}, which has no range of loudness; pass int16 or floats in [-1, 1]")
        half_range = 2.0 ** (8 * waveform.dtype.itemsize - 1)
        if waveform.dtype == np.int32 and waveform.any() and np.abs(waveform.astype(np.int64)).max() < 2**15:
            logger.warning(f"{name} is {waveform.dtype} with the range of int16: it is read as very quiet; make it int16")
        waveform = (waveform.astype(np.float64) - (half_range if waveform.dtype.kind == "u" else 0.0)) / half_range
    waveform = waveform.astype(np.float32)
    if waveform.ndim == 2:
        if waveform.size == 0:
            return waveform.reshape(-1)
        waveform = waveform.mean(axis=0 if waveform.shape[0] <= waveform.shape[1] else 1)
    return waveform


def _resample(waveform: np.ndarray, sampling_rate: int | None, target_rate: int) -> np.ndarray:
    """To `target_rate`, as `transformers.audio_utils.load_audio` does (and librosa)."""
    if sampling_rate is None:
        logger.warning_once(
            f"an audio array came without `sampling_rate`: {target_rate} Hz is assumed. Pass it, since a wrong rate "
            "gives a wrong score without any error"
        )
    elif not isinstance(sampling_rate, Real) or not MIN_RATE <= sampling_rate <= MAX_RATE:
        raise ValueError(f"the sampling rate must be between {MIN_RATE} and {MAX_RATE} Hz, got {sampling_rate!r}")
    elif sampling_rate != target_rate and waveform.size:
        if not is_soxr_available():
            raise ImportError("resampling needs soxr: `pip install soxr`")
        length = math.ceil(len(waveform) * target_rate / sampling_rate)
        waveform = soxr.resample(waveform, sampling_rate, target_rate, quality="soxr_hq")[:length]
        waveform = np.pad(waveform, (0, length - len(waveform)))
    return np.ascontiguousarray(waveform, dtype=np.float32)


# --- Waveform -> fbank ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def mel_filter_bank(num_mel_bins: int) -> torch.Tensor:
    """Kaldi's triangular mel filters `[FFT_LENGTH / 2 + 1, mel bins]`.

    In float32 from the first step on, as torchaudio does: filters from float64 differ by 1e-5, which moves the log energy
    of near-empty bins by whole units.
    """

    def mel(frequency: float) -> float:
        return 1127.0 * math.log(1.0 + frequency / 700.0)

    exact = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults are
    low, high = mel(LOW_FREQUENCY), mel(HIGH_FREQUENCY)
    step = (high - low) / (num_mel_bins + 1)
    bins = torch.arange(num_mel_bins, **exact).unsqueeze(1)
    left, center, right = low + bins * step, low + (bins + 1.0) * step, low + (bins + 2.0) * step
    frequencies = SAMPLING_RATE / FFT_LENGTH * torch.arange(FFT_LENGTH // 2, **exact)
    mels = 1127.0 * (1.0 + frequencies / 700.0).log().unsqueeze(0)
    filters = torch.min((mels - left) / (center - left), (right - mels) / (right - center)).clamp(min=0.0)
    return F.pad(filters, (0, 1)).T  # no filter reaches the Nyquist bin


@lru_cache(maxsize=1)
def povey_window() -> torch.Tensor:
    """Kaldi's default window `[FRAME_LENGTH]`: a symmetric Hann window to the power 0.85."""
    return torch.hann_window(FRAME_LENGTH, periodic=False, dtype=torch.float32, device="cpu").pow(0.85)


def fbank(waveforms: torch.Tensor, num_mel_bins: int = 128) -> torch.Tensor:
    """Log-mel fbank of Kaldi: `[batch, samples]` in [-1, 1] at 16 kHz -> `[batch, frames, mel bins]`, float32.

    Equal to `torchaudio.compliance.kaldi.fbank(waveform * 2**15, num_mel_bins=128, sample_frequency=16000)` for each clip,
    without torchaudio. Always float32, whatever autocast says: bfloat16 moves the log energies by up to 0.14.
    """
    device = waveforms.device
    with torch.autocast(device.type, enabled=False):
        frames = (waveforms.float() * INT16_SCALE).unfold(-1, FRAME_LENGTH, HOP_LENGTH)  # [batch, frames, 400]
        frames = frames - frames.mean(dim=-1, keepdim=True)
        previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        frames = (frames - PREEMPHASIS * previous) * povey_window().to(device)
        power = torch.fft.rfft(F.pad(frames, (0, FFT_LENGTH - FRAME_LENGTH))).abs().pow(2.0)
        return (power @ mel_filter_bank(num_mel_bins).to(device)).clamp(min=LOG_FLOOR).log()
