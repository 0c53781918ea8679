"""What the frozen encoder makes of each clip, computed once and kept on disk.

A cache folder holds segments, one a writer: `<name>.bin`, the features of its clips one after another, and `<name>.jsonl`,
which says whose they are. A clip counts only once its line is written, which happens after its features are: a killed
writer leaves at worst features that no line mentions. Segments are never changed afterwards and read through a memory
map, so any number of processes can read and write at the same time.

Features are found by what they were made of: the bytes of the audio file, the weights and settings of the encoder, the
settings of the front end, and how they are stored. A changed file or encoder finds nothing and is computed anew.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.utils import logging

from xacle.audio_xacle import SAMPLING_RATE, load_waveform
from xacle.core.clips import ALONE, HASH_BYTES, Share, hash_clips, read_json_lines
from xacle.processing_xacle import XacleProcessor

logger = logging.get_logger(__name__)

CHUNK = 16  # clips encoded and written at once; part of the result's last bits, therefore not an option
DTYPES = {"float32": np.float32, "float16": np.float16}
KINDS = ("fbank", "audio_states")


class UndecodableClipsError(ValueError):
    """Clips that could not be decoded: `errors` maps their index to what is wrong."""

    def __init__(self, errors: dict[int, Exception]):
        self.errors = errors
        lines = [str(error) for error in list(errors.values())[:20]]
        lines += [f"... and {len(errors) - 20} more"] if len(errors) > 20 else []
        super().__init__("\n".join([f"clips that cannot be decoded: {len(errors)}", *lines]))


# --- Keys ----------------------------------------------------------------------------------------------------------------


def features_key(kind: str, processor: XacleProcessor, model=None, dtype: str = "float32") -> str:
    """A name for everything but the audio that features depend on.

    Args:
        kind: `"fbank"` (only the front end matters) or `"audio_states"` (then also the encoder of `model` and its pooling).
    """
    extractor = processor.feature_extractor.to_dict()
    settings = {
        "kind": kind,
        "dtype": dtype,
        "chunk": CHUNK,
        "extractor": {name: extractor[name] for name in ("feature_size", "padding_value", "fbank_mean", "fbank_std")},
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


# --- The cache -----------------------------------------------------------------------------------------------------------


class FeatureCache:
    """
    Features of equal shape, by the hash of the audio they belong to.

    Args:
        folder: Made if it does not exist.
        shape: Of one clip's features.
        dtype: `"float32"` or `"float16"`.
    """

    def __init__(self, folder: Path, shape: Sequence[int], dtype: str = "float32"):
        self.folder, self.shape, self.dtype = Path(folder), tuple(shape), np.dtype(DTYPES[dtype])
        self.folder.mkdir(parents=True, exist_ok=True)
        self.segments: list[Path] = []
        self.position: dict[str, tuple[int, int]] = {}  # hash -> segment, row
        self._maps: dict[int, np.memmap] = {}
        self.refresh()

    @property
    def clip_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def refresh(self) -> None:
        """Read what all writers have finished so far."""
        self.segments = sorted(self.folder.glob("*.jsonl"))
        self.position, self._maps = {}, {}
        for number, index in enumerate(self.segments):
            rows = index.with_suffix(".bin").stat().st_size // self.clip_bytes
            for record in read_json_lines(index):
                for row, digest in enumerate(record["clips"], start=record["first"]):
                    if row < rows:
                        self.position.setdefault(digest, (number, row))  # what was read once stays what is read

    def __contains__(self, digest: str) -> bool:
        return digest in self.position

    def __len__(self) -> int:
        return len(self.position)

    def read(self, digest: str) -> np.ndarray:
        """A clip's features, as stored. Raises `KeyError` if they are not there."""
        segment, row = self.position[digest]
        if segment not in self._maps:
            path = self.segments[segment].with_suffix(".bin")
            rows = path.stat().st_size // self.clip_bytes
            self._maps[segment] = np.memmap(path, self.dtype, mode="r", shape=(rows, *self.shape))
        return self._maps[segment][row]

    def __getstate__(self):
        return {**self.__dict__, "_maps": {}}  # workers map the files themselves instead of copying them

    def writer(self) -> "_SegmentWriter":
        return _SegmentWriter(self.folder, self.shape, self.dtype)


class _SegmentWriter:
    """Appends chunks of clips to a segment of its own."""

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: np.dtype):
        self.shape, self.dtype, self.rows = shape, dtype, 0
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"  # sorted by age
        self.features = (folder / f"{name}.bin").open("xb")
        self.index = (folder / f"{name}.jsonl").open("xb")

    def write(self, digests: list[str], features: np.ndarray) -> None:
        if features.shape != (len(digests), *self.shape):
            raise ValueError(f"features of the shape {features.shape} do not fit a cache of {self.shape} a clip")
        self.features.write(np.ascontiguousarray(features, dtype=self.dtype).tobytes())
        self.features.flush()
        os.fsync(self.features.fileno())  # the features are on disk before anything says so
        self.index.write(json.dumps({"first": self.rows, "clips": digests}).encode() + b"\n")
        self.index.flush()
        self.rows += len(digests)

    def close(self) -> None:
        os.fsync(self.index.fileno())
        self.features.close()
        self.index.close()


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
    folder = Path(folder)
    digests = hash_clips(audio, folder, share)
    if kind == "audio_states":
        shape = (model.config.num_audio_tokens, model.config.audio_config.hidden_size)
    else:
        extractor = processor.feature_extractor
        shape = tuple(extractor(np.zeros(SAMPLING_RATE, np.float32), sampling_rate=SAMPLING_RATE)["input_features"][0].shape)
    cache = FeatureCache(folder / features_key(kind, processor, model, dtype), shape, dtype)
    share.gather(None)  # every process has seen the same cache before one of them adds to it

    # Chunks are cut from all clips, not from the missing ones: a resumed writer then repeats the very same batches, whose
    # composition shows in the last bits of the encoder's output.
    distinct = list({digest: clip for clip, digest in reversed(digests.items())}.values())[::-1]
    chunks = [distinct[start : start + CHUNK] for start in range(0, len(distinct), CHUNK)]
    chunks = [chunk for chunk in chunks if any(digests[clip] not in cache for clip in chunk)]
    errors = share.merge(_fill(cache, share.take(chunks), audio, digests, kind, processor, model, num_workers))
    cache.refresh()
    if errors:
        first = {digests[clip]: clip for clip in errors}
        for clip, digest in digests.items():
            if digest in first and clip not in errors:
                errors[clip] = ValueError(
                    f"'{audio[clip]}' holds the same bytes as '{audio[first[digest]]}': {errors[first[digest]]}"
                )
        raise UndecodableClipsError(dict(sorted(errors.items())))
    if missing := sum(digest not in cache for digest in digests.values()):
        raise ValueError(
            f"{missing} clips that other processes encoded are not in '{cache.folder}': the feature cache must be on a file "
            "system that all machines share"
        )
    return ClipFeatures(kind, cache, digests)


def _fill(cache, chunks, audio, digests, kind, processor, model, num_workers) -> dict[int, Exception]:
    """Compute and write chunks of clips; returns those that could not be decoded."""
    errors: dict[int, Exception] = {}
    if not chunks:
        return errors
    size = sum(map(len, chunks)) * cache.clip_bytes
    logger.info(f"caching {kind} of {sum(map(len, chunks))} clips ({size / 1e9:.1f} GB) in '{cache.folder}'")
    loader = _loader(chunks, audio, num_workers)
    writer = cache.writer()
    training = model is not None and model.training
    try:
        if model is not None:
            model.eval()
        for clips, waveforms in tqdm(loader, desc=f"caching {kind}", unit="chunk"):
            errors.update({c: item for c, item in zip(clips, waveforms, strict=True) if isinstance(item, Exception)})
            decoded = {c: item for c, item in zip(clips, waveforms, strict=True) if not isinstance(item, Exception)}
            if not decoded:
                continue
            features = compute_features(kind, list(decoded.values()), processor, model).cpu().numpy()
            new = [row for row, clip in enumerate(decoded) if digests[clip] not in cache]
            clips = list(decoded)
            writer.write([digests[clips[row]] for row in new], features[new])
    finally:
        writer.close()
        if model is not None:
            model.train(training)
    return errors


def undecodable_clips(audio: dict[int, object], num_workers: int = 0, share: Share = ALONE) -> dict[int, Exception]:
    """The clips that cannot be decoded, by index, with what is wrong: for work that caches nothing."""
    clips = share.take(list(audio))
    chunks = [clips[start : start + CHUNK] for start in range(0, len(clips), CHUNK)]
    errors = {}
    if chunks:
        for chunk, waveforms in tqdm(_loader(chunks, audio, num_workers), desc="decoding clips", unit="chunk", delay=2):
            errors.update({clip: item for clip, item in zip(chunk, waveforms, strict=True) if isinstance(item, Exception)})
    return share.merge(errors)


def _loader(chunks: list[list[int]], audio: dict[int, object], num_workers: int) -> DataLoader:
    # A generator of its own: the global one, which dropout draws from, must not know whether a cache was there.
    generator = torch.Generator().manual_seed(0)
    return DataLoader(_Waveforms(chunks, audio), batch_size=None, num_workers=num_workers, generator=generator)


class _Waveforms(torch.utils.data.Dataset):
    """Decodes a chunk of clips; what cannot be decoded comes back as its error."""

    def __init__(self, chunks: list[list[int]], audio: dict[int, object]):
        self.chunks, self.audio = chunks, audio

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> tuple[list[int], list]:
        waveforms = []
        for clip in self.chunks[index]:
            try:
                waveforms.append(load_waveform(self.audio[clip]))
            except (OSError, ValueError) as error:
                waveforms.append(error)
        return self.chunks[index], waveforms


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
