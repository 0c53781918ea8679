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

# The fbank of Kaldi, with its defaults.
SAMPLING_RATE = 16000
FRAME_LENGTH = 25 * SAMPLING_RATE // 1000  # 400 samples: 25 ms
HOP_LENGTH = 10 * SAMPLING_RATE // 1000  # 160 samples: 10 ms
FFT_LENGTH = 512  # the next power of two
PREEMPHASIS = 0.97
LOW_FREQUENCY, HIGH_FREQUENCY = 20.0, SAMPLING_RATE / 2
INT16_SCALE = 2.0**15  # Kaldi expects the range of 16-bit samples, not [-1, 1]
LOG_FLOOR = 2.0**-23  # the epsilon of float32
MAX_FBANK_BATCH = 32  # clips; bounds the memory of the frames, 2 MB a clip

# Clips.
MAX_CLIP_SECONDS = 10.0  # the length of the clips people rated
MAX_SAMPLES = int(MAX_CLIP_SECONDS * SAMPLING_RATE)  # 160000; 998 frames of fbank
PATCH_FRAMES = 16  # BEATs cuts the fbank into patches of 16 frames by 16 mel bins
MIN_SAMPLES = FRAME_LENGTH + (PATCH_FRAMES - 1) * HOP_LENGTH  # 2800: one patch
MIN_CLIP_SECONDS = 0.1  # shorter ones are scored with a warning
MAX_AMPLITUDE = 4.0  # louder ones are scored with a warning
CUT_TOLERANCE_SECONDS = 0.1  # by which a cut may end after its sound

# Resampling by a windowed sinc, as torchaudio's default.
ZERO_CROSSINGS = 6  # of the sinc, on either side ("lowpass_filter_width")
ROLLOFF = 0.99  # of the lower Nyquist frequency, where the filter cuts
MAX_RESAMPLED = 2**17  # samples computed at once; bounds the memory of their neighbors
RESAMPLERS = ("soxr", "sinc_hann")

# Files.
MIN_RATE, MAX_RATE = 1000, 768000  # Hz; beyond them a header or an argument is wrong
URL_TIMEOUT_SECONDS = 30.0
MAX_OGG_PAGE = 27 + 255 + 255 * 255  # bytes: header, segment table, segments
FILE_TYPES = (str, os.PathLike, bytes, bytearray, memoryview)
ARRAY_TYPES = (np.ndarray, torch.Tensor, list, tuple)


# --- Sound -> waveform ---------------------------------------------------------------------------------------------------


class Waveform(np.ndarray):
    """What `load_waveform` returns: an ordinary array, whose length and loudness are not warned of again downstream."""


def load_waveform(
    audio,
    sampling_rate: int | None = None,
    target_rate: int = SAMPLING_RATE,
    resampler: str = "soxr",
    start: float | None = None,
    end: float | None = None,
) -> Waveform:
    """Any sound -> mono float32 waveform `[samples]` at `target_rate`, in [-1, 1].

    Clips under 0.1 s, and values far beyond [-1, 1], are logged as warnings.

    Args:
        audio: A path, an `http(s)://` URL, a `data:` URI, an audio file's bytes or the open file, a dict of `datasets`
            (`{"array", "sampling_rate"}`, `{"bytes"}` or `{"path"}`), or an array, tensor or list of samples. A dict may
            hold `start` and `end` as well. Arrays may be
            `[samples]`, `[channels, samples]` or `[samples, channels]` (the shorter axis is the channels); integer
            arrays are scaled by their type's range. Files may be wav, flac, ogg, mp3 and whatever else libsndfile reads.
        sampling_rate: The rate of an array, in Hz. Without it, `target_rate` is assumed, with a warning.
        target_rate: The rate to return, in Hz; by default 16 kHz, the rate of BEATs.
        resampler: `"soxr"`, or `"sinc_hann"`, see [`resample_sinc_hann`].
        start, end: The cut of the sound to return, in seconds; from its beginning and to its end by default. Files are
            decoded from `start` on, not before it.

    Raises:
        FileNotFoundError, IsADirectoryError: if a path does not exist, or is a folder.
        ValueError: if the sound cannot be decoded, is empty, holds NaN or infinite samples, or does not hold the whole cut.
            The message names the file.
        TypeError: if `audio` is of another type.
    """
    if isinstance(audio, dict):
        cut = {"start": audio.get("start", start), "end": audio.get("end", end)}
        if audio.get("array") is not None:
            rate = audio.get("sampling_rate") or sampling_rate
            return load_waveform(audio["array"], rate, target_rate, resampler, **cut)
        for key in ("bytes", "path"):
            if audio.get(key) is not None:
                return load_waveform(audio[key], None, target_rate, resampler, **cut)
        raise ValueError(f"an audio dict needs 'array', 'bytes' or 'path', got the keys {sorted(audio)}")
    if hasattr(audio, "read"):
        if audio.seekable():
            audio.seek(0)
        audio = audio.read()
    if not isinstance(audio, (*FILE_TYPES, *ARRAY_TYPES)):
        raise TypeError(f"audio must be a path, URL, bytes, dict, array or tensor, got {type(audio).__name__}")
    name = _name_of(audio)
    if isinstance(audio, FILE_TYPES):
        samples, sampling_rate = _decode(audio, start, end)
        samples = _to_mono(samples, name)
    else:
        samples = _to_mono(audio, name)
        if start is not None or end is not None:
            first, last = cut_samples(len(samples), sampling_rate or target_rate, start, end, name)
            samples = samples[first:last]
    waveform = _resample(samples, sampling_rate, target_rate, resampler)
    if waveform.size == 0:
        raise ValueError(f"{name} holds no samples")
    if not np.isfinite(waveform).all():
        raise ValueError(f"{name} holds NaN or infinite samples; re-export it")
    if not isinstance(audio, Waveform):
        _warn_of_unusual(waveform, len(waveform) / target_rate, name)
    return waveform.view(Waveform)


def _name_of(audio) -> str:
    """How messages call a sound."""
    if isinstance(audio, ARRAY_TYPES):
        return "the audio array"
    if isinstance(audio, (bytes, bytearray, memoryview)):
        return f"the audio given as {len(audio)} bytes"
    path = os.fspath(audio)
    return f"the audio given as '{path[:40]}...'" if _starts_with("data:", path) else path


def _warn_of_unusual(waveform: np.ndarray, seconds: float, name: str) -> None:
    if seconds < MIN_CLIP_SECONDS:
        logger.warning(f"{name} lasts {1000 * seconds:.3g} ms: nearly all that is scored is the silence it is padded with")
    if (peak := np.abs(waveform).max()) > MAX_AMPLITUDE:
        logger.warning(
            f"{name} has values up to {peak:.0f}, where [-1, 1] is expected; divide them, or pass integers as an integer array"
        )


# --- Files ---------------------------------------------------------------------------------------------------------------


def open_sound(source) -> "sf.SoundFile":
    """Open a sound given by path, URL, `data:` URI or bytes, to look at its header or to decode it.

    By soundfile, whatever else is installed: a score must not depend on the decoder.

    Raises:
        FileNotFoundError, ValueError: see [`load_waveform`]. A wav or ogg file that ends before its end is refused.
    """
    if not (is_soundfile_available() and is_soxr_available()):
        raise ImportError("reading audio files needs soundfile and soxr: `pip install soundfile soxr`")
    file = _fetch(source)
    try:
        sound = sf.SoundFile(file)
    except (sf.LibsndfileError, TypeError) as error:  # the latter for .raw files, which have no header
        raise ValueError(_undecodable(source, error)) from error
    if _lacks_samples(sound) or (sound.format == "OGG" and _lacks_last_page(file)):
        sound.close()
        raise ValueError(f"{_name_of(source)} is cut off: it ends before the end its header announces; copy or export it again")
    return sound


def cut_samples(samples: int, rate: int, start: float | None, end: float | None, name: str) -> tuple[int, int]:
    """Seconds -> the samples from which and up to which a cut of a sound goes.

    Raises:
        ValueError: if there is no such cut. An end up to `CUT_TOLERANCE_SECONDS` past the sound's is taken as its end: tables
            hold rounded seconds.
    """
    seconds = samples / rate
    begin, stop = 0.0 if start is None else start, seconds if end is None else end
    if not 0 <= begin < stop:
        raise ValueError(f"a cut of {name} must have 0 <= start < end, got {begin:g} to {stop:g} s")
    if begin >= seconds or stop > seconds + CUT_TOLERANCE_SECONDS:
        raise ValueError(f"{name} lasts {seconds:.6g} s: it holds no cut from {begin:g} to {stop:g} s")
    return round(begin * rate), min(round(stop * rate), samples)


def _decode(source, start: float | None = None, end: float | None = None) -> tuple[np.ndarray, int]:
    """A file, or a cut of it in seconds -> the mean of its channels `[samples]`, and its rate in Hz."""
    with open_sound(source) as sound:
        first, last = 0, sound.frames
        if start is not None or end is not None:
            first, last = cut_samples(sound.frames, sound.samplerate, start, end, _name_of(source))
        try:
            if first:
                sound.seek(first)
            frames = last - first if last < sound.frames else -1
            samples = sound.read(frames, dtype="float32", always_2d=True).mean(axis=1)
        except sf.LibsndfileError as error:
            raise ValueError(_undecodable(source, error)) from error
        if len(samples) < 0.99 * (last - first):
            name = _name_of(source)
            message = f"{name} is cut off or damaged: it announces {last - first} samples and holds {len(samples)}"
            if sound.format != "MP3":
                raise ValueError(f"{message}; copy or export it again")
            logger.warning(message)  # only an estimate where an mp3 has no index
        return samples, sound.samplerate


def _fetch(source) -> str | io.BytesIO:
    """Path, URL, data URI or bytes -> what soundfile opens."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    source = os.fspath(source)
    if _starts_with("data:", source):
        return io.BytesIO(base64.b64decode(source.partition(",")[2]))
    if _starts_with("https?://", source):
        try:
            response = httpx.get(source, follow_redirects=True, timeout=URL_TIMEOUT_SECONDS)
            response.raise_for_status()
        except httpx.HTTPError as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]  # the rest is a link to what 404 means
            raise ValueError(f"cannot fetch {source}: {reason}") from error
        return io.BytesIO(response.content)
    if os.path.isdir(source):
        raise IsADirectoryError(f"'{source}' is a folder, not an audio file")
    if not os.path.isfile(source):
        raise FileNotFoundError(f"no audio file at '{source}'")
    return source


def _starts_with(scheme: str, source: str) -> bool:
    return re.match(scheme, source, re.IGNORECASE) is not None


def _lacks_samples(sound) -> bool:
    """Whether a wav file stops before the size in its header: libsndfile reads what there is and only notes this.

    Streamed wav files declare a size of 0 or 2**32 - 1.
    """
    size = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, flags=re.MULTILINE)
    return size is not None and 1.01 * int(size[2]) < int(size[1]) < 2**31 - 1


def _lacks_last_page(file: str | io.BytesIO) -> bool:
    """Whether an Ogg file stops before the page that is marked as its last (RFC 3533, section 6)."""
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


def _undecodable(source, error: Exception) -> str:
    reason = re.sub(r"^Error (: |opening .*?: )", "", str(error)).rstrip(".")
    if reason.startswith("File does not exist"):  # libsndfile's message for an mp3 without a frame, too
        reason = "no audio is found in it"
    if isinstance(error, TypeError):
        reason = "it has no header"
    return (
        f"cannot decode {_name_of(source)}: {reason}. It may be empty, damaged or no audio at all; "
        "wav, flac, ogg and mp3 are read (convert others, e.g. `ffmpeg -i in.m4a out.wav`)"
    )


# --- Samples -------------------------------------------------------------------------------------------------------------


def _to_mono(samples, name: str) -> np.ndarray:
    """Array, tensor or list of samples, one channel or several -> float32 `[samples]`. `name` is for messages."""
    is_list = isinstance(samples, (list, tuple))
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    waveform = np.asarray(samples)
    if waveform.dtype.kind not in "iuf" or waveform.ndim not in (1, 2):
        raise ValueError(
            "an audio array must hold numbers and be [samples] or [channels, samples], got the shape "
            f"{list(waveform.shape)} of {waveform.dtype}"
        )
    if waveform.dtype.kind in "iu" and not is_list:  # integers in a list have no type to scale by
        waveform = _scale_integers(waveform, name)
    waveform = waveform.astype(np.float32)
    if waveform.size == 0:
        return waveform.reshape(-1)
    if waveform.ndim == 2:
        waveform = waveform.mean(axis=0 if waveform.shape[0] <= waveform.shape[1] else 1)
    return waveform


def _scale_integers(samples: np.ndarray, name: str) -> np.ndarray:
    """Integers -> [-1, 1], float64, by their type's range."""
    if samples.dtype.itemsize > 4:
        raise ValueError(f"{name} is {samples.dtype}, which has no range of loudness; pass int16 or floats in [-1, 1]")
    if samples.dtype == np.int32 and samples.any() and np.abs(samples.astype(np.int64)).max() < 2**15:
        logger.warning(f"{name} is {samples.dtype} with the range of int16: it is read as very quiet; make it int16")
    half_range = 2.0 ** (8 * samples.dtype.itemsize - 1)
    center = half_range if samples.dtype.kind == "u" else 0.0
    return (samples.astype(np.float64) - center) / half_range


def _resample(waveform: np.ndarray, sampling_rate: int | None, target_rate: int, resampler: str) -> np.ndarray:
    """To `target_rate`; by soxr as `transformers.audio_utils.load_audio` does (and librosa)."""
    if sampling_rate is None:
        logger.warning_once(
            f"an audio array came without `sampling_rate`: {target_rate} Hz is assumed. Pass it, since a wrong rate "
            "gives a wrong score without any error"
        )
    elif not isinstance(sampling_rate, Real) or not MIN_RATE <= sampling_rate <= MAX_RATE:
        raise ValueError(f"the sampling rate must be between {MIN_RATE} and {MAX_RATE} Hz, got {sampling_rate!r}")
    elif sampling_rate != target_rate and waveform.size and resampler == "sinc_hann":
        waveform = resample_sinc_hann(torch.from_numpy(waveform), int(sampling_rate), target_rate).numpy()
    elif sampling_rate != target_rate and waveform.size:
        if not is_soxr_available():
            raise ImportError("resampling needs soxr: `pip install soxr`")
        length = math.ceil(len(waveform) * target_rate / sampling_rate)
        waveform = soxr.resample(waveform, sampling_rate, target_rate, quality="soxr_hq")[:length]
        waveform = np.pad(waveform, (0, length - len(waveform)))
    return np.ascontiguousarray(waveform, dtype=np.float32)


def resample_sinc_hann(waveforms: torch.Tensor, rate: int, target_rate: int = SAMPLING_RATE) -> torch.Tensor:
    """`[..., samples]` at `rate` -> `[..., ceil(samples * target_rate / rate)]`, as `torchaudio.functional.resample`.

    Every output sample is a sum of input samples, weighted by a sinc that cuts off at 0.99 times the lower of the two Nyquist
    frequencies, under a Hann window of six zero crossings on either side (J. O. Smith, "Digital Audio Resampling"). The
    authors' system hears its files through this filter.
    """
    divisor = math.gcd(rate, target_rate)
    step, phases = rate // divisor, target_rate // divisor  # output sample n lies at input sample n * step / phases
    cutoff = min(1, phases / step) * ROLLOFF  # of the input's Nyquist frequency: zero crossings of the sinc per input sample
    reach = math.ceil(ZERO_CROSSINGS / cutoff)  # input samples on either side
    taps = torch.arange(-reach, reach + 2, dtype=torch.float64)
    length = math.ceil(waveforms.shape[-1] * phases / step)
    # The filters repeat after `phases` output samples.
    fraction = (torch.arange(min(phases, length)) * step % phases).double() / phases
    distance = ((taps - fraction.unsqueeze(1)) * cutoff).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)  # [phases, taps]
    window = torch.cos(distance * math.pi / (2 * ZERO_CROSSINGS)).square()
    filters = (torch.sinc(distance) * window * cutoff).to(waveforms)
    neighbors = F.pad(waveforms.reshape(-1, waveforms.shape[-1]), (reach, reach + 1)).unfold(-1, len(taps), 1)
    blocks = [
        (neighbors[:, output * step // phases] * filters[output % phases]).sum(-1)
        for output in torch.arange(length, device=waveforms.device).split(MAX_RESAMPLED)
    ]
    return torch.cat(blocks, dim=-1).reshape(*waveforms.shape[:-1], length)


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
    without torchaudio. Always float32, even under autocast: bfloat16 moves the log energies by up to 0.14.
    """
    device = waveforms.device
    with torch.autocast(device.type, enabled=False):
        frames = (waveforms.float() * INT16_SCALE).unfold(-1, FRAME_LENGTH, HOP_LENGTH)  # [batch, frames, 400]
        frames = frames - frames.mean(dim=-1, keepdim=True)
        previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        frames = (frames - PREEMPHASIS * previous) * povey_window().to(device)
        power = torch.fft.rfft(F.pad(frames, (0, FFT_LENGTH - FRAME_LENGTH))).abs().pow(2.0)
        return (power @ mel_filter_bank(num_mel_bins).to(device)).clamp(min=LOG_FLOOR).log()
