"""Sound and caption -> tensors for M2D-CLAP: `M2dClapFeatureExtractor` (waveform -> log-mel) and `M2dClapProcessor` (both).

waveform 16 kHz in [-1, 1] --STFT, power--> [201, frames] --80 mel filters, log, normalize--> input_features [frames, 80]
"""

from functools import lru_cache
from numbers import Real

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoProcessor, BatchFeature, ProcessorMixin, SequenceFeatureExtractor

from xacle.audio_xacle import load_waveform
from xacle.clap.m2d_configuration import M2dClapConfig

SAMPLING_RATE = 16000
WINDOW_LENGTH = 400  # 25 ms, and the length of the FFT
HOP_LENGTH = 160  # 10 ms; 10 s give 1001 frames
LOW_FREQUENCY, HIGH_FREQUENCY = 50.0, 8000.0
LOG_OFFSET = 1.1920928955078125e-07  # float32 epsilon
MIN_SAMPLES = WINDOW_LENGTH // 2 + 1  # fewer cannot be reflected at their ends

# Slaney's mel scale: linear up to 1 kHz, logarithmic above.
HZ_PER_MEL = 200.0 / 3.0
KNEE_HZ = 1000.0
KNEE_MEL = KNEE_HZ / HZ_PER_MEL
LOG_STEP = np.log(6.4) / 27.0


@lru_cache(maxsize=4)
def mel_filter_bank(num_mel_bins: int) -> torch.Tensor:
    """Triangular filters on Slaney's mel scale, each of area 1 over its frequencies: `[mel bins, 201]`, float32."""

    def mel(frequency):
        return KNEE_MEL + np.log(frequency / KNEE_HZ) / LOG_STEP if frequency >= KNEE_HZ else frequency / HZ_PER_MEL

    mels = np.linspace(mel(LOW_FREQUENCY), mel(HIGH_FREQUENCY), num_mel_bins + 2)
    corners = np.where(mels >= KNEE_MEL, KNEE_HZ * np.exp(LOG_STEP * (mels - KNEE_MEL)), HZ_PER_MEL * mels)
    left, center, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    frequencies = np.fft.rfftfreq(WINDOW_LENGTH, 1.0 / SAMPLING_RATE)
    triangles = np.minimum((frequencies - left) / (center - left), (right - frequencies) / (right - center)).clip(min=0.0)
    return torch.tensor(triangles * 2.0 / (right - left), dtype=torch.float32, device="cpu")


def log_mel(waveform: torch.Tensor, num_mel_bins: int = 80) -> torch.Tensor:
    """Log-mel spectrogram of M2D: `[samples]` in [-1, 1] at 16 kHz -> `[1 + samples // 160, mel bins]`, float32.

    Frames are centered on multiples of the hop, the ends are reflected, the window is a periodic Hann window. Always in
    float32, even under autocast.
    """
    exact = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults are
    with torch.autocast("cpu", enabled=False):
        spectrum = torch.stft(
            waveform.to(**exact),
            n_fft=WINDOW_LENGTH,
            hop_length=HOP_LENGTH,
            window=torch.hann_window(WINDOW_LENGTH, periodic=True, **exact),
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )  # [201, frames]
        power = spectrum.real.square() + spectrum.imag.square()
        return (mel_filter_bank(num_mel_bins) @ power + LOG_OFFSET).log().T.contiguous()


class M2dClapFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Waveforms -> normalized log-mel spectrograms, the input of M2D-CLAP's audio tower.

    Args:
        feature_size (`int`, defaults to 80): Mel bins.
        sampling_rate (`int`, defaults to 16000): The only rate supported; other audio is resampled.
        padding_value (`float`, defaults to 0.0): Value of padded frames, after normalization.
        norm_mean, norm_std (`float`): Statistics of the log-mel values in the pre-training data, stored in a checkpoint as
            `norm_stats`. Features are `(log-mel - norm_mean) / norm_std`. The defaults are the checkpoint's of 2025.
    """

    model_input_names = ["input_features", "input_lengths"]

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = SAMPLING_RATE,
        padding_value: float = 0.0,
        norm_mean: float = -7.261779308319092,
        norm_std: float = 4.3511505126953125,
        **kwargs,
    ):
        if sampling_rate != SAMPLING_RATE:
            raise ValueError(f"M2D-CLAP is supported at {SAMPLING_RATE} Hz, got sampling_rate={sampling_rate}")
        if not norm_std > 0:
            raise ValueError(f"norm_std must be above 0, got {norm_std}")
        kwargs.setdefault("return_attention_mask", False)
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.norm_mean = norm_mean
        self.norm_std = norm_std

    def __call__(
        self,
        raw_speech,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """
        Args:
            raw_speech: One sound or a list of sounds: arrays, tensors, paths, URLs, bytes or dicts (see
                [`xacle.audio_xacle.load_waveform`]). They are not cut: the model takes any length.
            sampling_rate: The rate of the arrays among them, in Hz. Other rates than 16 kHz are resampled.
            padding: `True` pads to the longest clip, `"max_length"` to `max_length` frames, `False` not at all. Padding does
                not change a clip's embedding.
            max_length: Frames to pad to with `"max_length"`; 1001 for 10 s.
            return_tensors: `"pt"` or `"np"`; lists of arrays otherwise.

        Returns:
            `input_features` `[batch, frames, feature_size]`, float32, and `input_lengths` `[batch]`, each clip's own frames.

        Raises:
            ValueError, TypeError, FileNotFoundError: for sounds that cannot be read or last under 201 samples (12.6 ms).
        """
        single = not isinstance(raw_speech, (list, tuple)) or (raw_speech and isinstance(raw_speech[0], Real))
        waveforms = [load_waveform(sound, sampling_rate) for sound in ([raw_speech] if single else raw_speech)]
        if not waveforms:
            raise ValueError("no audio was given")
        if (shortest := min(map(len, waveforms))) < MIN_SAMPLES:
            raise ValueError(
                f"a clip of {shortest} samples is too short for one frame: M2D-CLAP needs {MIN_SAMPLES} samples at "
                f"{SAMPLING_RATE} Hz"
            )
        # Clip by clip: neither the reflected ends nor a single bit may depend on what else is in the batch.
        features = [
            ((log_mel(torch.from_numpy(waveform), self.feature_size) - self.norm_mean) / self.norm_std).numpy()
            for waveform in waveforms
        ]
        lengths = [len(clip) for clip in features]
        if padding == "max_length" and (max_length is None or max_length < max(lengths)):
            raise ValueError(f"padding='max_length' needs a max_length of at least {max(lengths)} frames, got {max_length}")
        batch = self.pad(BatchFeature({"input_features": features}), padding=padding, max_length=max_length)
        batch["input_lengths"] = np.array(lengths)
        return BatchFeature(batch.data, tensor_type=return_tensors)


class M2dClapProcessor(ProcessorMixin):
    r"""
    Captions and sounds -> the inputs of [`M2dClapModel`].

    Args:
        feature_extractor (`M2dClapFeatureExtractor`): Turns sounds into log-mel spectrograms.
        tokenizer: The text encoder's tokenizer.
    """

    def __init__(self, feature_extractor, tokenizer):
        super().__init__(feature_extractor, tokenizer)

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio=None,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """
        Args:
            text: One caption or a list.
            audio: One sound or a list (see [`M2dClapFeatureExtractor`]); sounds are always padded to the longest.
            sampling_rate: The rate of arrays, in Hz.
            padding, truncation, max_length: Of the captions, as every tokenizer takes them. As in the original, nothing is
                truncated unless asked for; BERT takes 512 tokens at most.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            `input_ids` and `attention_mask` `[captions, tokens]`; `input_features` `[clips, frames, 80]` and `input_lengths`
            `[clips]`. The original gives its text encoder no `token_type_ids`, so none are returned.
        """
        if text is None and audio is None:
            raise ValueError("pass `text`, `audio` or both")
        data = {}
        if text is not None:
            data |= self.tokenizer(
                [text] if isinstance(text, str) else list(text),
                padding=padding,
                truncation=truncation,
                max_length=max_length,
                return_token_type_ids=False,
                return_attention_mask=True,
                return_tensors=return_tensors,
            )
        if audio is not None:
            data |= self.feature_extractor(audio, sampling_rate=sampling_rate, return_tensors=return_tensors)
        return BatchFeature(data)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", *self.feature_extractor.model_input_names]


AutoFeatureExtractor.register(M2dClapConfig, M2dClapFeatureExtractor, exist_ok=True)
AutoProcessor.register(M2dClapConfig, M2dClapProcessor, exist_ok=True)

__all__ = ["M2dClapFeatureExtractor", "M2dClapProcessor"]
