"""Sound and caption -> tensors: `XacleFeatureExtractor` (sound -> fbank) and `XacleProcessor` (both).

sound --load_waveform--> [160000] --fbank--> [998, 128] --normalize--> input_features
caption --tokenize as plain text--> ids <|AUDIO_START|> <|AUDIO|>x100 <|AUDIO_END|> <|SCORE|> --> input_ids
"""

import math
from itertools import groupby
from numbers import Real
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, BatchFeature, PreTrainedConfig, ProcessorMixin, SequenceFeatureExtractor
from transformers.processing_utils import ProcessingKwargs, Unpack
from transformers.utils import logging

from .audio_xacle import MAX_FBANK_BATCH, MAX_SAMPLES, MIN_SAMPLES, RESAMPLERS, SAMPLING_RATE, fbank, load_waveform

# Saving the processor copies the modules it imports: this line makes the pipeline travel with the model folder.
from .pipeline_xacle import XaclePipeline  # noqa: F401

logger = logging.get_logger(__name__)


class XacleFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Sounds -> normalized fbank, the input of BEATs.

    Args:
        feature_size (`int`, defaults to 128): Mel bins.
        sampling_rate (`int`, defaults to 16000): The rate of BEATs, the only one; other audio is resampled.
        padding_value (`float`, defaults to 0.0): Value of padded samples.
        fbank_mean, fbank_std (`float`): AudioSet's statistics. Features are `(fbank - mean) / (2 * std)`.
        resampler (`"soxr"` or `"sinc_hann"`, defaults to `"soxr"`): How sounds of other rates are resampled. `"sinc_hann"` is
            the filter of the authors' system, see [`resample_sinc_hann`]; converted checkpoints have it.
    """

    model_input_names = ["input_features"]

    def __init__(
        self,
        feature_size: int = 128,
        sampling_rate: int = SAMPLING_RATE,
        padding_value: float = 0.0,
        fbank_mean: float = 15.41663,
        fbank_std: float = 6.55582,
        resampler: str = "soxr",
        **kwargs,
    ):
        if sampling_rate != SAMPLING_RATE:
            raise ValueError(f"BEATs works at {SAMPLING_RATE} Hz, got sampling_rate={sampling_rate}")
        if resampler not in RESAMPLERS:
            raise ValueError(f"resampler must be one of {', '.join(RESAMPLERS)}, got {resampler!r}")
        kwargs.setdefault("return_attention_mask", False)
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.fbank_mean = fbank_mean
        self.fbank_std = fbank_std
        self.resampler = resampler

    @property
    def max_samples(self) -> int:
        """Samples of the longest clip, and of a window: 160000, 10 s."""
        return MAX_SAMPLES

    def fetch_audio(self, audio, sampling_rate: int | None = None):
        """One sound or a list of sounds (see [`load_waveform`]) -> one waveform `[samples]`, or a list of them."""
        if isinstance(audio, (list, tuple)) and not (audio and isinstance(audio[0], Real)):
            return [load_waveform(item, sampling_rate, self.sampling_rate, self.resampler) for item in audio]
        return load_waveform(audio, sampling_rate, self.sampling_rate, self.resampler)

    def windows(self, waveform: np.ndarray) -> list[np.ndarray]:
        """Cut `[samples]` into consecutive windows of 10 s; the last holds the rest."""
        return [waveform[start : start + self.max_samples] for start in range(0, len(waveform), self.max_samples)]

    def average_windows(self, scores, samples) -> np.ndarray:
        """The score of a whole sound: the mean over its windows, weighted by duration.

        Args:
            scores: `[windows, ...]`, for instance `[windows, captions]`; an array, a list or a tensor on the CPU.
            samples: `[windows]`, the length of each window.

        Returns:
            `[...]`, float32; averaged in float64.
        """
        return np.average(np.asarray(scores, dtype=np.float64), axis=0, weights=samples).astype(np.float32)

    def __call__(
        self,
        raw_speech,
        sampling_rate: int | None = None,
        padding: bool | str = "max_length",
        max_length: int | None = None,
        truncation: bool = True,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        device: str | torch.device = "cpu",
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
        if truncation:
            waveforms = self._cut_waveforms(waveforms, max_length)
        padded = self._pad_waveforms(waveforms, padding, max_length)
        features = self._normalized_fbank(padded, device)
        data = {"input_features": features if return_tensors == "pt" else [clip.cpu().numpy() for clip in features]}
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            data["attention_mask"] = [
                self._frame_mask(len(waveform), len(samples), len(clip))
                for waveform, samples, clip in zip(waveforms, padded, features, strict=True)
            ]
        return BatchFeature(data, tensor_type=return_tensors)

    def _cut_waveforms(self, waveforms: list[np.ndarray], max_length: int) -> list[np.ndarray]:
        too_long = [len(waveform) for waveform in waveforms if len(waveform) > max_length]
        if too_long:
            logger.warning(
                f"{len(too_long)} of {len(waveforms)} clips are longer than {max_length / self.sampling_rate:g} s (up to "
                f"{max(too_long) / self.sampling_rate:.2f} s): only the beginning is used. The pipeline and `xacle score` "
                "score long clips in windows"
            )
        return [waveform[:max_length] for waveform in waveforms]

    def _pad_waveforms(self, waveforms: list[np.ndarray], padding: bool | str, max_length: int) -> list[torch.Tensor]:
        longest = max(map(len, waveforms))
        targets = {"max_length": max_length, "longest": longest, True: longest, "do_not_pad": 0, False: 0}
        if padding not in targets:
            raise ValueError(f"padding must be 'max_length', 'longest' or False, got {padding!r}")
        target = targets[padding]
        if (shortest := max(target, min(map(len, waveforms)))) < MIN_SAMPLES:
            raise ValueError(
                f"a clip of {shortest} samples is too short for one patch of BEATs: without padding, {MIN_SAMPLES} samples "
                f"({MIN_SAMPLES / self.sampling_rate} s) are needed"
            )
        return [
            F.pad(torch.from_numpy(waveform), (0, max(0, target - len(waveform))), value=self.padding_value)
            for waveform in waveforms
        ]

    def _normalized_fbank(self, waveforms: list[torch.Tensor], device: str | torch.device) -> list[torch.Tensor]:
        """`[frames, feature_size]` of each clip; neighbors of one length share batches."""
        features = []
        for _, group in groupby(waveforms, key=len):
            for batch in torch.stack(list(group)).split(MAX_FBANK_BATCH):
                features.extend((fbank(batch.to(device), self.feature_size) - self.fbank_mean) / (2 * self.fbank_std))
        return features

    @staticmethod
    def _frame_mask(length: int, padded_length: int, frames: int) -> np.ndarray:
        """Microsoft's rule, `[frames]`: samples are dealt out to frames evenly; a frame counts if any of its samples does."""
        return (np.arange(frames) * (padded_length // frames) < length).astype(np.int32)


# --- Sound and caption -> model inputs -----------------------------------------------------------------------------------


class XacleTextKwargs(TypedDict, total=False):
    """
    padding (`bool` or `str`, defaults to `True`), max_length (`int`), pad_to_multiple_of (`int`):
        How rows of tokens are padded, for compiled models that want few lengths.
    truncation: Accepted since callers pass it by habit, and without effect: rows are never cut, captions are, at
        `max_caption_tokens`.
    return_tensors: Only `"pt"`.
    """

    padding: bool | str
    max_length: int
    pad_to_multiple_of: int
    truncation: bool | str
    return_tensors: str


class XacleAudioKwargs(TypedDict, total=False):
    """
    The two arguments of [`XacleFeatureExtractor`] that need no `audio_kwargs={...}` around them. Padding and lengths do:
    outside of it they concern the tokens, and a clip becomes 10 s.
    """

    sampling_rate: int
    device: str | torch.device


class XacleProcessorKwargs(ProcessingKwargs, total=False):
    text_kwargs: XacleTextKwargs
    audio_kwargs: XacleAudioKwargs


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
        prepend_bos (`bool`, defaults to `False`): Whether every row starts with the tokenizer's BOS token, for language models
            that were trained with one. (Qwen2.5 was not.)
    """

    valid_processor_kwargs = XacleProcessorKwargs
    text_kwargs = {"padding": True, "return_tensors": "pt"}
    audio_kwargs = {"return_tensors": "pt"}

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
        prepend_bos: bool = False,
    ):
        self.num_audio_tokens = num_audio_tokens
        self.audio_token = audio_token
        self.audio_start_token = audio_start_token
        self.audio_end_token = audio_end_token
        self.score_token = score_token
        self.max_caption_tokens = max_caption_tokens
        self.prepend_bos = prepend_bos
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
        if prepend_bos and tokenizer.bos_token_id is None:
            raise ValueError("prepend_bos needs a tokenizer with a bos_token")
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
        self, text: str | list[str] | None = None, audio=None, task: str | None = None, **kwargs: Unpack[XacleProcessorKwargs]
    ) -> BatchFeature:
        """
        Args:
            text: One caption or a list. Captions are data: a special token written in one is tokenized as plain text.
            audio: One sound or a list, by path, URL, bytes, dict, array or tensor (see [`load_waveform`]).
            task: `"scoring"` (the default) puts the audio and `<|SCORE|>` after the caption. `"captioning"` puts the caption
                after the audio and adds `labels`; without `text` it gives the prompt for `generate`.
            sampling_rate (`int`): The rate of arrays, in Hz.
            padding (`bool` or `str`), max_length (`int`), pad_to_multiple_of (`int`): For tokens, see [`XacleTextKwargs`].
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
        text_kwargs, audio_kwargs = self._split_kwargs(kwargs)
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
            data.update(self.feature_extractor(audio, **audio_kwargs))
            clips = len(data["input_features"])
            if captions is not None and len(captions) != clips and 1 not in (len(captions), clips):
                raise ValueError(f"got {len(captions)} captions and {clips} sounds; pass as many of each, or one of either")
            if captions is not None and len(captions) == 1:
                captions = captions * clips
        start, audio_ids = self._bos_ids(), self._audio_ids()
        prompt = start + audio_ids
        if captions is None:
            rows = [prompt] * clips
        elif task == "captioning":
            answers = [[*ids, self.tokenizer.eos_token_id] for ids in self.tokenize_captions(captions)]
            rows = [prompt + answer for answer in answers]
        else:
            rows = [[*start, *ids, *audio_ids, self.score_token_id] for ids in self.tokenize_captions(captions)]
        length = self._padded_length(rows, **text_kwargs)
        data["input_ids"] = self._pad(rows, length, self.tokenizer.pad_token_id)
        if captions is None or task == "captioning":
            data["attention_mask"] = self._pad([[1] * len(row) for row in rows], length, 0)
        if captions is not None and task == "captioning":
            data["labels"] = self._pad([[-100] * len(prompt) + answer for answer in answers], length, -100)
        return BatchFeature(data)

    def _split_kwargs(self, kwargs: dict) -> tuple[dict, dict]:
        """A call's keyword arguments -> those of `_padded_length` and of the feature extractor.

        transformers would ignore unknown ones; here they are refused, since a mistyped `sampling_rate` changes the score.
        """
        text_names, audio_names = XacleTextKwargs.__annotations__, XacleAudioKwargs.__annotations__
        known = {*text_names, *audio_names, "text_kwargs", "audio_kwargs"}
        if unknown := [name for name in kwargs if name not in known]:
            raise TypeError(f"XacleProcessor has no argument {', '.join(map(repr, unknown))}")
        if unknown := [name for name in kwargs.get("text_kwargs", {}) if name not in text_names]:
            raise TypeError(f"text_kwargs of XacleProcessor has no argument {', '.join(map(repr, unknown))}")
        merged = self._merge_kwargs(**kwargs)
        for options in (merged["text_kwargs"], merged["audio_kwargs"]):
            if options["return_tensors"] != "pt":
                raise ValueError(f"XacleProcessor returns PyTorch tensors, got return_tensors={options['return_tensors']!r}")
        return merged["text_kwargs"], merged["audio_kwargs"]

    @staticmethod
    def _padded_length(rows, padding: bool | str, max_length: int | None = None, pad_to_multiple_of=None, **_) -> int:
        """The length in tokens that all `rows` are padded to. Takes the [`XacleTextKwargs`] and heeds those on length."""
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

    def _bos_ids(self) -> list[int]:
        return [self.tokenizer.bos_token_id] if self.prepend_bos else []

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
        """Token ids of each caption as plain text: no special token is recognized or added, at most `max_caption_tokens`."""
        added = self.tokenizer.get_added_vocab()
        with_tokens = [any(token in caption for token in added) for caption in captions]
        plain = [caption for caption, special in zip(captions, with_tokens, strict=True) if not special]
        plain_ids = iter(self.tokenizer(plain, add_special_tokens=False)["input_ids"] if plain else ())
        token_ids = []
        for caption, special in zip(captions, with_tokens, strict=True):
            ids = self._tokenize_without_added_tokens(caption) if special else next(plain_ids)
            if len(ids) > self.max_caption_tokens:
                start = caption if len(caption) <= 60 else caption[:57] + "..."
                logger.warning(
                    f"a caption of {len(ids)} tokens was cut to max_caption_tokens={self.max_caption_tokens}: '{start}'"
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
