"""Sound and caption -> tensors: `XacleFeatureExtractor` (waveform -> fbank) and `XacleProcessor` (both).

sound, any rate or channels --decode, mono, 16 kHz--> [160000] --fbank--> [998, 128] --normalise--> input_features
caption --tokenise as plain text--> ids <|AUDIO_START|> <|AUDIO|>x100 <|AUDIO_END|> <|SCORE|> --> input_ids
"""

import base64
import io
import math
import os
import re
from functools import lru_cache
from itertools import groupby
from numbers import Real

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.utils import httpx
from transformers import AutoTokenizer, BatchFeature, PreTrainedConfig, ProcessorMixin, SequenceFeatureExtractor
from transformers.processing_utils import ProcessingKwargs, Unpack
from transformers.utils import is_soundfile_available, is_soxr_available, logging

# Saving the processor copies the modules it imports: this line makes the pipeline travel with the model folder.
from .pipeline_xacle import XaclePipeline  # noqa: F401

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


class XacleFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Waveforms -> normalised fbank, the input of BEATs.

    Args:
        feature_size (`int`, defaults to 128): Mel bins.
        sampling_rate (`int`, defaults to 16000): The only rate BEATs knows; other audio is resampled.
        padding_value (`float`, defaults to 0.0): Value of padded samples.
        fbank_mean, fbank_std (`float`): AudioSet's statistics. Features are `(fbank - mean) / (2 * std)`.
    """

    model_input_names = ["input_features"]

    def __init__(
        self,
        feature_size: int = 128,
        sampling_rate: int = SAMPLING_RATE,
        padding_value: float = 0.0,
        fbank_mean: float = 15.41663,
        fbank_std: float = 6.55582,
        **kwargs,
    ):
        if sampling_rate != SAMPLING_RATE:
            raise ValueError(f"BEATs works at {SAMPLING_RATE} Hz, got sampling_rate={sampling_rate}")
        kwargs.setdefault("return_attention_mask", False)
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.fbank_mean = fbank_mean
        self.fbank_std = fbank_std

    @property
    def max_samples(self) -> int:
        """Samples of the longest clip BEATs is given: 160000."""
        return int(MAX_CLIP_SECONDS * self.sampling_rate)

    def fetch_audio(self, audio, sampling_rate: int | None = None):
        """One sound or a list of sounds (see [`load_waveform`]) -> one waveform `[samples]`, or a list of them."""
        if isinstance(audio, (list, tuple)) and not (audio and isinstance(audio[0], Real)):
            return [load_waveform(item, sampling_rate) for item in audio]
        return load_waveform(audio, sampling_rate)

    def windows(self, waveform: np.ndarray) -> list[np.ndarray]:
        """Cut `[samples]` into consecutive windows of 10 s; the last holds the rest."""
        return [waveform[start : start + self.max_samples] for start in range(0, len(waveform), self.max_samples)]

    def __call__(
        self,
        raw_speech,
        sampling_rate: int | None = None,
        padding: bool | str = "max_length",
        max_length: int | None = None,
        truncation: bool = True,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        device: str = "cpu",
    ) -> BatchFeature:
        """
        Args:
            raw_speech: One sound or a list of sounds: arrays, tensors, paths, URLs, bytes or dicts (see [`load_waveform`]).
            sampling_rate: The rate of the arrays among them, in Hz. Other rates than 16 kHz are resampled.
            padding: `"max_length"` pads with silence to 10 s, which is what the scorer was trained on; `"longest"` (or
                `True`) to the longest clip; `False` leaves every clip its own length.
            max_length: Samples to pad and cut to with `"max_length"`; 10 s by default.
            truncation: Whether clips longer than `max_length` are cut (with a warning) instead of kept whole.
            return_attention_mask: Whether to return `attention_mask` `[batch, frames]`, 0 where a frame is padding.
            return_tensors: `"pt"` or `"np"`; lists of arrays otherwise.
            device: Where the fbank is computed.

        Returns:
            `input_features` `[batch, frames, feature_size]`, float32; 998 frames for 10 s.
        """
        waveforms = self.fetch_audio(raw_speech, sampling_rate)
        waveforms = waveforms if isinstance(waveforms, list) else [waveforms]
        if not waveforms:
            raise ValueError("no audio was given")
        max_length = max_length or self.max_samples
        too_long = [len(waveform) for waveform in waveforms if len(waveform) > max_length]
        if too_long and truncation:
            logger.warning(
                f"{len(too_long)} of {len(waveforms)} clips are longer than {max_length / self.sampling_rate:g} s (up to "
                f"{max(too_long) / self.sampling_rate:.2f} s): only the beginning is used. The pipeline and `xacle score` "
                "score long clips in windows"
            )
        if truncation:
            waveforms = [waveform[:max_length] for waveform in waveforms]
        lengths = [len(waveform) for waveform in waveforms]
        targets = {"max_length": max_length, "longest": max(lengths), True: max(lengths), "do_not_pad": 0, False: 0}
        if padding not in targets:
            raise ValueError(f"padding must be 'max_length', 'longest' or False, got {padding!r}")
        target = targets[padding]
        padded = [
            F.pad(torch.from_numpy(waveform), (0, max(0, target - len(waveform))), value=self.padding_value)
            for waveform in waveforms
        ]
        if min(map(len, padded)) < MIN_SAMPLES:
            raise ValueError(
                f"a clip of {min(map(len, padded))} samples is too short for one patch of BEATs: without padding, "
                f"{MIN_SAMPLES} samples ({MIN_SAMPLES / self.sampling_rate} s) are needed"
            )
        features = []
        for _, group in groupby(padded, key=len):
            for batch in torch.stack(list(group)).split(MAX_FBANK_BATCH):
                normalised = (fbank(batch.to(device), self.feature_size) - self.fbank_mean) / (2 * self.fbank_std)
                features.extend(normalised)
        data = {"input_features": features if return_tensors == "pt" else [clip.cpu().numpy() for clip in features]}
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            # Microsoft's rule: the samples are dealt out to the frames evenly; a frame counts if any of its samples does.
            data["attention_mask"] = [
                (np.arange(len(clip)) * (len(waveform) // len(clip)) < length).astype(np.int32)
                for clip, waveform, length in zip(features, padded, lengths, strict=True)
            ]
        return BatchFeature(data, tensor_type=return_tensors)


# --- Sound and caption -> model inputs -----------------------------------------------------------------------------------


class XacleProcessor(ProcessorMixin):
    r"""
    Sounds and captions -> the inputs of the Xacle models.

    Args:
        feature_extractor (`XacleFeatureExtractor`): Turns sounds into fbank.
        tokenizer: The language model's tokenizer; it must know the four special tokens.
        num_audio_tokens (`int`, defaults to 100): Placeholders for a clip, `config.num_audio_tokens`.
        audio_token, audio_start_token, audio_end_token, score_token (`str`): The special tokens. Released checkpoints call
            them `[AUDIO_START]` and so on.
        max_caption_tokens (`int`, defaults to 256): Longer captions are cut, with a warning.
    """

    text_kwargs = {"padding": True, "return_tensors": "pt"}

    def __init__(
        self,
        feature_extractor,
        tokenizer,
        num_audio_tokens: int = 100,
        audio_token: str = "<|AUDIO|>",
        audio_start_token: str = "<|AUDIO_START|>",
        audio_end_token: str = "<|AUDIO_END|>",
        score_token: str = "<|SCORE|>",
        max_caption_tokens: int = 256,
    ):
        self.num_audio_tokens = num_audio_tokens
        self.audio_token = audio_token
        self.audio_start_token = audio_start_token
        self.audio_end_token = audio_end_token
        self.score_token = score_token
        self.max_caption_tokens = max_caption_tokens
        super().__init__(feature_extractor, tokenizer)
        known = tokenizer.get_added_vocab()
        tokens = (audio_token, audio_start_token, audio_end_token, score_token)
        if missing := [token for token in tokens if token not in known]:
            raise ValueError(
                f"the tokenizer lacks the special tokens {missing}; add them with "
                "`tokenizer.add_special_tokens({'additional_special_tokens': [...]})`"
            )
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no pad_token; Qwen's is '<|endoftext|>'")
        self.audio_token_id, self.audio_start_token_id, self.audio_end_token_id, self.score_token_id = (
            known[token] for token in tokens
        )

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        """Both parts' classes are known: loading needs neither a registered feature extractor nor `trust_remote_code`."""
        extractor = XacleFeatureExtractor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        kwargs["config"] = PreTrainedConfig()  # the tokenizer needs none, and the folder's would ask for trust
        return [extractor, AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)]

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "input_features"]

    def __call__(
        self, text: str | list[str] | None = None, audio=None, task: str | None = None, **kwargs: Unpack[ProcessingKwargs]
    ) -> BatchFeature:
        """
        Args:
            text: One caption or a list. Captions are data: a special token spelled out in one is tokenised as plain text.
            audio: One sound or a list, by path, URL, bytes, dict, array or tensor (see [`load_waveform`]).
            task: `"scoring"` (the default) puts the audio and `<|SCORE|>` after the caption. `"captioning"` puts the caption
                after the audio and adds `labels`; without `text` it gives the prompt for `generate`.
            sampling_rate (`int`): The rate of arrays, in Hz.
            padding (`bool` or `str`, defaults to `True`), max_length (`int`), pad_to_multiple_of (`int`): How rows of tokens
                are padded, for compiled models that want few lengths. Rows are never cut: captions are, at
                `max_caption_tokens`, whether or not the customary `truncation` is passed.
            text_kwargs, audio_kwargs (`dict`): The same for the tokens, and any argument of [`XacleFeatureExtractor`].

        One caption with several sounds, or one sound with several captions, makes every pair: the sound is encoded once.
        `text` alone gives the inputs of a scorer that gets its audio from `audio_states`; `audio` alone gives the
        captioning prompt.

        Returns:
            PyTorch tensors: `input_ids` `[pairs, tokens]`, padded on the right, so that the causal language model needs no
            mask to be exact; `input_features` `[clips, 998, 128]`; for captioning also `attention_mask` and `labels`
            `[pairs, tokens]`.

        Raises:
            ValueError, TypeError: for input that makes no pairs, and for unknown arguments; see also [`load_waveform`].
        """
        text_options, audio_options = self._options(kwargs)
        if task not in (None, "scoring", "captioning"):
            raise ValueError(f"task must be 'scoring' or 'captioning', got {task!r}")
        if text is None and audio is None:
            raise ValueError("pass `text`, `audio` or both")
        data = {}
        captions = None if text is None else self._list_of_captions(text)
        clips = 0
        if audio is not None:
            channels = audio.shape[0] if isinstance(audio, (np.ndarray, torch.Tensor)) and audio.ndim == 2 else 1
            if captions is not None and channels == len(captions) > 1:
                raise ValueError(
                    f"an array [{channels}, samples] is one sound of {channels} channels; pass {channels} clips as a list"
                )
            data.update(self.feature_extractor(audio, **audio_options))
            clips = len(data["input_features"])
            if captions is not None and len(captions) != clips and 1 not in (len(captions), clips):
                raise ValueError(f"got {len(captions)} captions and {clips} sounds; pass as many of each, or one of either")
            if captions is not None and len(captions) == 1:
                captions = captions * clips
        prompt = self._audio_ids()
        if captions is None:
            rows = [prompt] * clips
        elif task == "captioning":
            answers = [[*ids, self.tokenizer.eos_token_id] for ids in self.tokenize_captions(captions)]
            rows = [prompt + answer for answer in answers]
        else:
            rows = [[*ids, *prompt, self.score_token_id] for ids in self.tokenize_captions(captions)]
        length = self._padded_length(rows, **text_options)
        data["input_ids"] = self._pad(rows, length, self.tokenizer.pad_token_id)
        if captions is None or task == "captioning":
            data["attention_mask"] = self._pad([[1] * len(row) for row in rows], length, 0)
        if captions is not None and task == "captioning":
            data["labels"] = self._pad([[-100] * len(prompt) + answer for answer in answers], length, -100)
        return BatchFeature(data)

    def _options(self, kwargs: dict) -> tuple[dict, dict]:
        """A call's keyword arguments -> those of `_padded_length` and of the feature extractor; refuses all others.

        Padding and lengths outside `audio_kwargs` concern the tokens: a clip always becomes 10 s unless told otherwise.
        """
        text_names = {"padding", "max_length", "pad_to_multiple_of", "truncation", "return_tensors"}
        groups = {"text_kwargs", "audio_kwargs", "common_kwargs"}
        given = [*kwargs, *kwargs.get("text_kwargs", {}), *kwargs.get("common_kwargs", {})]
        if unknown := [name for name in given if name not in text_names | groups | {"sampling_rate", "device"}]:
            raise TypeError(f"XacleProcessor has no argument {', '.join(map(repr, unknown))}")
        merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        text_options, merged_audio = merged["text_kwargs"], merged["audio_kwargs"]
        if text_options.get("return_tensors", "pt") != "pt":
            raise ValueError(f"XacleProcessor returns PyTorch tensors, got return_tensors={text_options['return_tensors']!r}")
        audio_options = {name: merged_audio[name] for name in ("sampling_rate", "device") if name in merged_audio}
        audio_options |= {**kwargs.get("audio_kwargs", {}), "return_tensors": "pt"}
        names = ("padding", "max_length", "pad_to_multiple_of")
        return {name: text_options[name] for name in names if name in text_options}, audio_options

    @staticmethod
    def _padded_length(rows, padding: bool | str = True, max_length: int | None = None, pad_to_multiple_of=None) -> int:
        """The length in tokens that all `rows` are padded to."""
        length = max(map(len, rows))
        if padding == "max_length":
            if max_length is None or length > max_length:
                raise ValueError(f"padding='max_length' needs a max_length of at least {length} tokens, got {max_length}")
            length = max_length
        elif padding in (False, "do_not_pad") and min(map(len, rows)) < length:
            raise ValueError("rows of different lengths need padding; leave `padding` at its default")
        return math.ceil(length / (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)

    @staticmethod
    def _pad(rows: list[list[int]], length: int, value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (length - len(row)) for row in rows])

    def _audio_ids(self) -> list[int]:
        return [self.audio_start_token_id, *[self.audio_token_id] * self.num_audio_tokens, self.audio_end_token_id]

    @staticmethod
    def _list_of_captions(text) -> list[str]:
        captions = [text] if isinstance(text, str) else list(text)
        for index, caption in enumerate(captions):
            if not isinstance(caption, str):
                raise TypeError(f"caption {index} must be a string, got {type(caption).__name__}: {caption!r}")
        if not captions:
            raise ValueError("no caption was given")
        return captions

    def tokenize_captions(self, captions: list[str]) -> list[list[int]]:
        """Token ids of each caption as plain text: no special token is recognised or added, at most `max_caption_tokens`."""
        added = self.tokenizer.get_added_vocab()
        spelled_out = [any(token in caption for token in added) for caption in captions]
        plain = [caption for caption, special in zip(captions, spelled_out, strict=True) if not special]
        plain_ids = iter(self.tokenizer(plain, add_special_tokens=False)["input_ids"] if plain else ())
        token_ids = []
        for caption, special in zip(captions, spelled_out, strict=True):
            ids = self._tokenize_without_added_tokens(caption) if special else next(plain_ids)
            if len(ids) > self.max_caption_tokens:
                shown = caption if len(caption) <= 60 else caption[:57] + "..."
                logger.warning(
                    f"a caption of {len(ids)} tokens was cut to max_caption_tokens={self.max_caption_tokens}: '{shown}'"
                )
            token_ids.append(ids[: self.max_caption_tokens])
        return token_ids

    def _tokenize_without_added_tokens(self, caption: str) -> list[int]:
        """The tokenizer's own steps, minus the search for added tokens (`split_special_tokens` misses non-special ones)."""
        backend = self.tokenizer.backend_tokenizer
        if backend.normalizer is not None:
            caption = backend.normalizer.normalize_str(caption)
        pieces = [caption]
        if backend.pre_tokenizer is not None:
            pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(caption)]
        return [token.id for piece in pieces for token in backend.model.tokenize(piece)]


XacleFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
XacleProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["XacleFeatureExtractor", "XacleProcessor"]
