"""The journal of a job: what is scored so far, a line a unit (see blocks.py), so that an interrupted job continues there.

JSONL: first what the job is (digests of its source, sounds and model; its settings), then a line for each unit, block by
block: its rows, as they are in the output, or with their errors. A killed writer leaves at worst half a line, which is cut
off: the unit is then scored again as it was, alone.
"""

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

from xacle.configuration_xacle import XacleConfig
from xacle.core.clips import HASH_BYTES, file_digest
from xacle.scoring.blocks import BlockKey

MODEL_FILES = (".json", ".safetensors", ".txt", ".model")


class Unit(NamedTuple):
    """The rows of a unit, each with `part`, `line` and either `pred_score` or `error`."""

    block: BlockKey
    number: int
    rows: list[dict]


def describe_job(table: str, audio: Iterable[str | Path], model: str, **settings) -> dict:
    """What scores depend on, for [`Journal`].

    Args:
        table: The digest of the source.
        audio: The table's files, of which size and time of change count, and URLs.
        model: Folder, whose weights and settings are read, or Hub id, of which the commit counts.
    """
    sounds = hashlib.blake2b(digest_size=HASH_BYTES)
    for file in audio:
        known = file if isinstance(file, str) else [file.stat().st_size, file.stat().st_mtime_ns]
        sounds.update(json.dumps(known).encode())
    return {
        "table": table,
        "sounds": sounds.hexdigest(),
        "model": _model_digest(model),
        "xacle": version("xacle"),
        **settings,
    }


def _model_digest(model: str) -> str:
    if not Path(model).is_dir():
        return f"{model}@{XacleConfig.get_config_dict(model)[0].get('_commit_hash')}"
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    for file in sorted(Path(model).iterdir()):
        if file.suffix in MODEL_FILES:
            digest.update(file.name.encode())
            file_digest(file, digest)
    return digest.hexdigest()


def differences(one: dict, other: dict) -> list[str]:
    """The names under which two jobs differ."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def read_job(path: Path) -> dict:
    """What the job of a journal is; empty if it is no journal."""
    with path.open("rb") as file:
        return _job(file.readline())


def _job(line: bytes) -> dict:
    try:
        return json.loads(line)["job"] if line.endswith(b"\n") else {}
    except (ValueError, TypeError, KeyError):
        return {}


def _units(file: BinaryIO) -> Iterator[tuple[Unit, int]]:
    """The complete units of a journal, which is read from its beginning, and how many bytes they and those before take."""
    file.seek(0)
    complete = len(file.readline())
    for line in iter(file.readline, b""):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
            unit = Unit(BlockKey(*record["block"]), record["unit"], record["rows"])
        except (ValueError, TypeError, KeyError):
            return  # half a line
        complete += len(line)
        yield unit, complete


def merged_rows(journals: Sequence[BinaryIO]) -> Iterator[dict]:
    """The rows of several processes' journals in the order of their source, a block in memory at a time."""
    units = heapq.merge(*((unit for unit, _ in _units(file)) for file in journals), key=lambda unit: unit.block)
    for _, block in groupby(units, key=lambda unit: unit.block):
        rows = {(row["part"], row["line"]): row for unit in block for row in unit.rows}  # a unit may have been tried again
        for place in sorted(rows):
            yield rows.pop(place)


class Journal:
    """
    Opens the journal at `path`, and continues what is there if it is of the same job.

    Args:
        path: `<output>.part`.
        job: See [`describe_job`].

    Attributes:
        rows: How many rows it holds.
        last: The block of its last unit: those before it are complete.
        done: The units of that block.
        set_aside: Where the journal of another job that stood at `path` went, and in what that job differed; `None` if
            there was none.

    Raises:
        FileExistsError: if another process is writing to it.
    """

    def __init__(self, path: Path, job: dict):
        self.path, self.set_aside = path, None
        self.rows, self.last, self.done = 0, None, set()
        self.file = self._open()
        first = self.file.readline()
        if first and (changed := differences(_job(first), job)):
            self.set_aside = (path.replace(path.with_name(path.name + ".old")), changed)
            self.file.close()
            self.file, first = self._open(), b""
        complete = len(first)
        for unit, complete in _units(self.file):  # noqa: B007
            self._count(unit)
        self.file.truncate(complete)
        if not complete:
            self._write({"job": job})

    def _count(self, unit: Unit) -> None:
        if unit.block != self.last:
            self.last, self.done = unit.block, set()
        if any("error" in row for row in unit.rows):
            return  # tried again: what its rows lacked may be there now
        self.done.add(unit.number)
        self.rows += len(unit.rows)

    def _open(self) -> BinaryIO:
        file = self.path.open("a+b")
        with suppress(ImportError):  # Windows has no fcntl
            import fcntl

            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, no lock of the worker processes too
            except (BlockingIOError, PermissionError) as error:
                file.close()
                raise FileExistsError(f"another process is writing to '{self.path}'; wait for it") from error
            except OSError:
                pass  # some network file systems know no locks
        file.seek(0)
        return file

    def write(self, unit: Unit) -> None:
        self._write({"block": unit.block, "unit": unit.number, "rows": unit.rows})
        self._count(unit)

    def _write(self, record: dict) -> None:
        self.file.write(json.dumps(record, default=str).encode() + b"\n")
        self.file.flush()  # a killed job keeps its lines

    def close(self) -> None:
        self.file.close()
