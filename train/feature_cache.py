"""Features of clips (or captions), computed once and kept on disk.

A cache folder holds segments, one a writer: `<name>.bin`, the features of its clips one after another, and `<name>.jsonl`,
which says whose they are. A clip counts only once its line is written, which happens after its features are: a killed
writer leaves at worst features that no line mentions. Segments are never changed afterwards and read through a memory
map, so any number of processes can read and write at the same time.

Features are found by the hash of the clip's content; whatever else they depend on is part of the folder's name.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers.utils import logging

from xacle.core.clips import ALONE, Share, decode, read_json_lines

logger = logging.get_logger(__name__)

DTYPES = {"float32": np.float32, "float16": np.float16}


class FeatureCache:
    """
    Features of equal shape, by the hash of the content they belong to.

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


# --- Filling it ----------------------------------------------------------------------------------------------------------


def first_of_each(digests: dict[int, str]) -> dict[str, int]:
    """Each content, by its hash -> the first clip that has it."""
    first: dict[str, int] = {}
    for clip, digest in digests.items():
        first.setdefault(digest, clip)
    return first


@torch.no_grad()
def fill_cache(
    cache: FeatureCache,
    items: dict[str, object],
    compute: Callable[[object], torch.Tensor],
    chunk_size: int,
    *,
    load: Callable | None = None,
    prepare: Callable[[list], object] = list,
    workers: int = 0,
    share: Share = ALONE,
    title: str = "caching",
) -> dict[str, Exception]:
    """Compute what the cache lacks of some items, a chunk at a time, and write it.

    Chunks are cut from all items, not from the missing ones: a resumed writer then repeats the very same chunks, whose
    composition affects the last bits of a model's output.

    Args:
        items: Hash of the content -> the item, in an order that is always the same.
        compute: What `prepare` returned for a chunk -> its features `[items, *cache.shape]`.
        chunk_size: Items computed and written at once.
        load: Item -> what `prepare` takes a list of; by default the item itself.
        prepare: Runs in the workers, as `load` does.
        workers: Processes that load ahead.
        share: The processes that share the work.

    Returns:
        The errors of items that cannot be loaded, by hash, of all processes.
    """
    share.gather(None)  # every process has seen the same cache before one of them adds to it
    digests = list(items)
    chunks = [digests[start : start + chunk_size] for start in range(0, len(digests), chunk_size)]
    chunks = share.take([chunk for chunk in chunks if any(digest not in cache for digest in chunk)])
    errors: dict[str, Exception] = {}
    if chunks:
        count = sum(map(len, chunks))
        logger.info(f"{title}: {count} new ones ({count * cache.clip_bytes / 1e9:.1f} GB) in '{cache.folder}'")
        chunks_of_items = ({digest: items[digest] for digest in chunk} for chunk in chunks)
        writer = cache.writer()
        try:
            for chunk in tqdm(decode(chunks_of_items, _LoadChunk(load, prepare), workers), title, len(chunks), unit="chunk"):
                if isinstance(chunk, Exception):
                    raise chunk
                loaded, prepared, failed = chunk["loaded"], chunk["prepared"], chunk["failed"]
                errors.update(failed)
                new = [row for row, digest in enumerate(loaded) if digest not in cache]
                if new:
                    writer.write([loaded[row] for row in new], compute(prepared)[new].cpu().numpy())
        finally:
            writer.close()
    errors = share.merge(errors)
    cache.refresh()
    return errors


class _LoadChunk:
    """A chunk `{hash: item}` -> the hashes of what could be loaded, that prepared together, and the errors of the rest."""

    def __init__(self, load: Callable | None, prepare: Callable[[list], object]):
        self.load, self.prepare = load, prepare

    def __call__(self, chunk: dict[str, object]) -> dict:
        items = chunk.values() if self.load is None else decode(chunk.values(), self.load)
        found = dict(zip(chunk, items, strict=True))
        failed = {digest: item for digest, item in found.items() if isinstance(item, Exception)}
        loaded = {digest: item for digest, item in found.items() if digest not in failed}
        prepared = self.prepare(list(loaded.values())) if loaded else None
        return {"loaded": list(loaded), "prepared": prepared, "failed": failed}
