"""Clips on their way into a model: which are the same, which are this process' to do, and what they decode to.

A clip is known by its content: copies under other names are decoded and encoded once.
"""

import ctypes
import hashlib
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers.utils import logging

from xacle.audio_xacle import SAMPLING_RATE

logger = logging.get_logger(__name__)

PR_SET_PDEATHSIG = 1  # of Linux' prctl: the signal that a process gets when its parent ends

SAMPLE_BYTES = 4096
HASH_BYTES = 16
MANY_CLIPS = 64  # from here on files are decoded by processes of their own
MAX_WORKERS = 8


def same_content(files: Iterable[str | Path]) -> dict[str | Path, str | Path]:
    """Each file -> the first of those with the same bytes; URLs stand for themselves.

    Only files that agree in size and in a few kilobytes of their middle are read as a whole.
    """
    first = {file: file for file in files}
    groups = [[file for file in first if isinstance(file, Path)]]
    for key in (lambda file: file.stat().st_size, _middle, _content):
        groups = [part for group in groups for part in _split(group, key)]
    first.update({file: group[0] for group in groups for file in group})
    return first


def _split(group: list[Path], key: Callable) -> list[list[Path]]:
    """The parts of a group that agree in `key`; files without a like are dropped."""
    parts = defaultdict(list)
    for file in group:
        parts[key(file)].append(file)
    return [part for part in parts.values() if len(part) > 1]


def _middle(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(max(0, (size - SAMPLE_BYTES) // 2))
        return hashlib.blake2b(opened.read(SAMPLE_BYTES), digest_size=HASH_BYTES).digest()


def _content(file: Path) -> str:
    return file_digest(file, hashlib.blake2b(digest_size=HASH_BYTES))


def file_digest(path: str | Path, digest) -> str:
    """Add a file's bytes to a digest of `hashlib`; returns what it is then, in hex."""
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


# --- Several processes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """A process' share of some work: its number, from 0, and how many processes there are.

    Raises:
        ValueError: if there is no process of this number.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(f"{self.count} shards are numbered from 0 to {self.count - 1}, got {self.index} (--shard)")

    @classmethod
    def of_environment(cls) -> "Share":
        """This process' share under `accelerate launch` and `torchrun`; elsewhere everything."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    def take(self, work: list) -> list:
        """This process' part of the work: every `count`-th item."""
        return work[self.index :: self.count]

    def gather(self, found) -> list:
        """What each process found, in their order. Also makes each wait for the others (`torch.distributed`)."""
        if self.count == 1:
            return [found]
        everything = [None] * self.count
        torch.distributed.all_gather_object(everything, found)
        return everything

    def merge(self, found: dict) -> dict:
        """All processes' findings in one dict."""
        return {key: value for part in self.gather(found) for key, value in part.items()}


ALONE = Share()


# --- The content of clips, remembered ------------------------------------------------------------------------------------


def hash_clips(audio: dict[int, object], memory: Path | None = None, share: Share = ALONE) -> dict[int, str]:
    """The hash of every clip's bytes, by its index.

    Args:
        memory: A folder that remembers files' hashes, as long as their size, times and inode stay the same.
        share: This process'; each gets all hashes.
    """
    known: dict[str, tuple[list[int], str]] = {}
    file = nullcontext()
    if memory is not None:
        memory.mkdir(parents=True, exist_ok=True)
        for remembered in sorted(memory.glob("hashes-*.jsonl")):
            known.update({record["path"]: (record["stat"], record["hash"]) for record in read_json_lines(remembered)})
        file = (memory / f"hashes-{share.index}.jsonl").open("a", encoding="utf-8")
    clips = tqdm(share.take(list(audio)), desc="hashing clips", unit=" clips", delay=2)
    with file as remember:
        hashes = share.merge({clip: _hash_clip(audio[clip], known, remember) for clip in clips})
    return {clip: hashes[clip] for clip in audio}


def _hash_clip(audio, known: dict[str, tuple[list[int], str]], memory: TextIO | None) -> str:
    if isinstance(audio, dict) and (audio.get("start") is not None or audio.get("end") is not None):
        whole = _hash_clip({**audio, "start": None, "end": None}, known, memory)
        return content_digest(f"{whole} {audio['start']} {audio['end']}".encode())
    if isinstance(audio, dict):
        audio = audio.get("bytes") or audio.get("path") or np.asarray(audio["array"]).tobytes()
    if hasattr(audio, "read"):
        audio = audio.read()
    if isinstance(audio, bytes):
        return content_digest(audio)
    if isinstance(audio, str) and audio.lower().startswith(("http://", "https://")):
        raise ValueError(f"'{audio}' is a URL: download the clips to train on, they are read again and again")
    path = os.path.abspath(audio)
    stat = os.stat(path)
    signature = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    if path not in known or known[path][0] != signature:
        known[path] = (signature, file_digest(path, hashlib.blake2b(digest_size=HASH_BYTES)))
        if memory is not None:
            memory.write(json.dumps({"path": path, "stat": signature, "hash": known[path][1]}) + "\n")
    return known[path][1]


def content_digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=HASH_BYTES).hexdigest()


def read_json_lines(path: Path) -> Iterator[dict]:
    """The complete lines of a JSONL file; a killed writer may have left half a one at the end, or within."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                try:
                    yield json.loads(line)
                except ValueError:
                    logger.warning(f"'{path}' holds a damaged line, which is ignored")


# --- Decoding ------------------------------------------------------------------------------------------------------------


def with_rate(audio, sampling_rate: int = SAMPLING_RATE):
    """A sound that is an array, tensor or list of samples, with its rate, as a dict of `datasets`; other sounds as they are."""
    is_array = isinstance(audio, (np.ndarray, torch.Tensor, list, tuple))
    return {"array": audio, "sampling_rate": sampling_rate} if is_array else audio


def default_workers(clips: int, device: torch.device) -> int:
    """How many processes decode: none for a few clips; one keeps up with a CPU; for an accelerator, most of the CPU's cores."""
    if clips < MANY_CLIPS:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores_of_process = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return 1 if device.type == "cpu" else min(MAX_WORKERS, max(1, cores_of_process - 1))


class _Decoder(Dataset):
    """Sound -> what `load` makes of it, or its error."""

    def __init__(self, load: Callable):
        self.load = load

    def __getitem__(self, audio):
        try:
            return self.load(audio)
        except (OSError, ValueError, TypeError) as error:
            return error


def _unchanged(decoded):
    return decoded


def _start_worker(_) -> None:
    """Interrupts are the parent's to handle; where the parent is killed, its workers end as well (Linux)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def decode(sounds: Iterable, load: Callable, workers: int = 0) -> Iterator:
    """What `load` makes of each sound, or the error (`OSError`, `ValueError`, `TypeError`) it raised, in their order.

    Args:
        sounds: A stream of whatever `load` takes; it is read some items ahead.
        load: Pickled if there are workers.
        workers: Processes that decode ahead; 0 for this one.
    """
    loader = DataLoader(
        _Decoder(load),
        sampler=iter(sounds),  # the sounds take the place of a sampler's indices: workers get one each, in turn
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # of its own: decoding must not move the global one, which dropout draws from
    )
    yield from loader
