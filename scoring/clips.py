"""Which files are the same sound: each is then decoded and encoded once, whatever its copies are called."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

SAMPLE_BYTES = 4096
HASH_BYTES = 16


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
    """The hex digest of a file's bytes. (`hashlib.file_digest` needs Python 3.11.)"""
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
