"""What the frozen encoder makes of each clip of a table, or the fbank it is given: computed once, then read from the cache.

Features are found by what they were made of: the bytes of the audio file, the weights and settings of the encoder, the
settings of the front end, and how they are stored. A changed file or encoder finds nothing and is computed anew.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers.utils import logging

from xacle.audio_xacle import SAMPLING_RATE
from xacle.core.clips import ALONE, HASH_BYTES, Share, decode, hash_clips
from xacle.processing_xacle import XacleProcessor
from xacle.train.feature_cache import DTYPES, FeatureCache, fill_cache, first_of_each

logger = logging.get_logger(__name__)

CHUNK = 16  # clips encoded and written at once; part of the result's last bits, therefore not an option
KINDS = ("fbank", "audio_states")


class UndecodableClipsError(ValueError):
    """Clips that could not be decoded: `errors` maps their index to what is wrong."""

    def __init__(self, errors: dict[int, Exception]):
        self.errors = errors
        lines = [str(error) for error in list(errors.values())[:20]]
        if len(errors) > 20:
            lines.append(f"... and {len(errors) - 20} more")
        super().__init__("\n".join([f"clips that cannot be decoded: {len(errors)}", *lines]))


class ClipFeatures:
    """The features of a table's clips, by their index: `features[3]` -> tensor, float32."""

    def __init__(self, kind: str, cache: FeatureCache, digests: dict[int, str]):
        self.kind, self.cache, self.digests = kind, cache, digests

    def __getitem__(self, clip: int) -> torch.Tensor:
        return torch.from_numpy(self.cache.read(self.digests[int(clip)]).astype(np.float32))


def cache_features(
    kind: str,
    audio: dict[int, object],
    processor: XacleProcessor,
    folder: Path,
    model=None,
    *,
    dtype: str = "float32",
    num_workers: int = 0,
    share: Share = ALONE,
) -> ClipFeatures:
    """Compute what is missing in the cache of these clips, and open it.

    Args:
        kind: `"audio_states"`: [`XacleModel.get_audio_states`], `[num_audio_tokens, audio size]` a clip; `"fbank"`: the
            encoder's input, `[998, 128]`.
        audio: What `load_waveform` takes, by the clip's index. Only the first 10 s of a clip are used.
        folder: Root of all caches.
        model: With `"audio_states"`, the model whose encoder is used; it computes where it is.
        dtype: `"float32"`, or `"float16"` for half the disk: scores then differ by about 1e-4.
        num_workers: Processes that decode files.
        share: The processes that share the work.

    Raises:
        UndecodableClipsError: naming every clip that cannot be decoded, once all others are cached.
        ValueError: if another process' part cannot be read here.
    """
    if kind not in KINDS or dtype not in DTYPES:
        raise ValueError(f"kind must be one of {KINDS} and dtype one of {tuple(DTYPES)}, got {kind!r} and {dtype!r}")
    folder, extractor = Path(folder), processor.feature_extractor
    digests = hash_clips(audio, folder, share)
    if kind == "audio_states":
        shape = (model.config.num_audio_tokens, model.config.audio_config.hidden_size)
    else:
        shape = tuple(extractor(np.zeros(SAMPLING_RATE, np.float32), sampling_rate=SAMPLING_RATE)["input_features"][0].shape)
    cache = FeatureCache(folder / features_key(kind, processor, model, dtype), shape, dtype)
    training = model is not None and model.training
    if training:
        model.eval()
    try:
        errors = fill_cache(
            cache,
            {digest: audio[clip] for digest, clip in first_of_each(digests).items()},
            lambda waveforms: compute_features(kind, waveforms, processor, model),
            CHUNK,
            load=extractor.fetch_audio,
            workers=num_workers,
            share=share,
            title=f"caching {kind}",
        )
    finally:
        if training:
            model.train()
    if errors:
        raise UndecodableClipsError(errors_of_clips(errors, digests, audio))
    if missing := sum(digest not in cache for digest in digests.values()):
        raise ValueError(
            f"{missing} clips that other processes encoded are not in '{cache.folder}': the feature cache must be on a file "
            "system that all machines share"
        )
    return ClipFeatures(kind, cache, digests)


def features_key(kind: str, processor: XacleProcessor, model=None, dtype: str = "float32") -> str:
    """A name for everything but the audio that features depend on.

    Args:
        kind: `"fbank"` (only the front end matters) or `"audio_states"` (then also the encoder of `model` and its pooling).
    """
    extractor = processor.feature_extractor.to_dict()
    irrelevant = ("auto_map", "feature_extractor_type", "processor_class", "return_attention_mask", "padding_side")
    settings = {
        "kind": kind,
        "dtype": dtype,
        "chunk": CHUNK,
        "extractor": {name: value for name, value in extractor.items() if name not in irrelevant},
    }
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    if kind == "audio_states":
        beats = model.config.audio_config.to_diff_dict()
        irrelevant = ("transformers_version", "dtype", "weight_sources")
        settings["encoder"] = {name: value for name, value in beats.items() if name not in irrelevant}
        settings["pooling"] = [model.config.audio_pooling, model.config.num_audio_tokens]
        for name, tensor in sorted(model.base_model.audio_tower.state_dict().items()):
            digest.update(name.encode())
            digest.update(str(tensor.dtype).encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return f"{kind}-{dtype}-{digest.hexdigest()}"


@torch.no_grad()
def compute_features(kind: str, waveforms: list[np.ndarray], processor: XacleProcessor, model=None) -> torch.Tensor:
    """Waveforms -> `[clips, ...]` of either kind, as [`cache_features`] stores them."""
    extractor = processor.feature_extractor
    device = "cpu" if model is None else str(model.device)
    if any(len(waveform) > extractor.max_samples for waveform in waveforms):
        logger.warning_once("there are clips over 10 s: training uses their first 10 s")
    waveforms = [waveform[: extractor.max_samples] for waveform in waveforms]
    fbank = extractor(waveforms, sampling_rate=SAMPLING_RATE, return_tensors="pt", device=device)["input_features"]
    return fbank if kind == "fbank" else model.get_audio_states(fbank)


def check_decodable(audio: dict[int, object], load: Callable, num_workers: int = 0, share: Share = ALONE) -> None:
    """Raise [`UndecodableClipsError`] naming every clip that `load` refuses: for work that caches nothing."""
    clips = share.take(list(audio))
    found = tqdm(
        decode((audio[clip] for clip in clips), load, num_workers), "decoding clips", len(clips), unit=" clips", delay=2
    )
    errors = share.merge({clip: item for clip, item in zip(clips, found, strict=True) if isinstance(item, Exception)})
    if errors:
        raise UndecodableClipsError(dict(sorted(errors.items())))


def errors_of_clips(errors: dict[str, Exception], digests: dict[int, str], audio: dict[int, object]) -> dict[int, Exception]:
    """Errors by content -> errors by clip: copies of a clip that cannot be decoded are named with it."""
    first = first_of_each(digests)
    found = {}
    for clip, digest in sorted(digests.items()):
        if digest in errors:
            original, error = first[digest], errors[digest]
            copied = f"'{audio[clip]}' holds the same bytes as '{audio[original]}': {error}"
            found[clip] = error if clip == original else ValueError(copied)
    return found
