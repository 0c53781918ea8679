"""The journal of a table's job: what is scored so far, a line a row, so that an interrupted job continues where it stopped.

JSONL: first what the job is (digests of its table, sounds and model; its settings), then a line for each row of the table,
in the order they got ready. A killed writer leaves at worst half a line, which is cut off.
"""

import hashlib
import io
import json
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

from xacle.configuration_xacle import XacleConfig
from xacle.core.clips import HASH_BYTES, file_digest
from xacle.core.tables import shortest
from xacle.scoring.scorer import PairResult

MODEL_FILES = (".json", ".safetensors", ".txt", ".model")


def describe_job(table: Path, audio: Iterable[str | Path], model: str, **settings) -> dict:
    """What scores depend on, for [`Journal`].

    Args:
        audio: The table's files, of which size and time of change count, and URLs.
        model: Folder, whose weights and settings are read, or Hub id, of which the commit counts.
    """
    sounds = hashlib.blake2b(digest_size=HASH_BYTES)
    for file in audio:
        known = file if isinstance(file, str) else [file.stat().st_size, file.stat().st_mtime_ns]
        sounds.update(json.dumps(known).encode())
    return {
        "table": file_digest(table, hashlib.blake2b(digest_size=HASH_BYTES)),
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


def read_journal(path: Path) -> tuple[dict, dict[int, float | str]]:
    """A journal -> its job, and the score (or why there is none) of each line of the table."""
    with path.open("rb") as file:
        return _parse(file)[:2]


def _parse(lines: Iterable[bytes]) -> tuple[dict, dict[int, float | str], int]:
    """What [`read_journal`] returns, and how many bytes are complete."""
    job, results, complete = {}, {}, 0
    for line in lines:
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
            if complete == 0:
                job = record["job"]
            else:
                results[record["line"]] = record["error"] if "error" in record else record["pred_score"]
        except (ValueError, TypeError, KeyError):
            break  # half a line, or no journal at all
        complete += len(line)
    return job, results, complete


class Journal:
    """
    Opens the journal at `path`, and continues what is there if it is of the same job.

    Args:
        path: `<output>.part`.
        job: See [`describe_job`].

    Attributes:
        scores: The score of each line of the table that has one.
        set_aside: Where the journal of another job that stood at `path` went, and in what that job differed; `None` if
            there was none.

    Raises:
        FileExistsError: if another process is writing to it.
    """

    def __init__(self, path: Path, job: dict):
        self.path, self.scores, self.set_aside = path, {}, None
        self.file = self._open()
        content = self.file.read()
        old, results, complete = _parse(io.BytesIO(content))
        if content and (changed := differences(old, job)):
            self.set_aside = (path.replace(path.with_name(path.name + ".old")), changed)
            self.file.close()
            self.file, results, complete = self._open(), {}, 0
        # Rows without a score are tried again: what they lacked may be there now.
        self.scores = {line: score for line, score in results.items() if not isinstance(score, str)}
        self.file.truncate(complete)
        if not complete:
            self._write({"job": job})

    def _open(self) -> BinaryIO:
        file = self.path.open("a+b", buffering=0)  # a killed job keeps its lines
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

    def write(self, result: PairResult) -> None:
        found = {"error": str(result.error)} if result.error is not None else {"pred_score": float(shortest(result.score))}
        self._write({"line": result.pair.line, "wav_file_name": result.pair.wav_file_name, **found})
        if result.error is None:
            self.scores[result.pair.line] = found["pred_score"]

    def _write(self, record: dict) -> None:
        self.file.write(json.dumps(record).encode() + b"\n")

    def close(self) -> None:
        self.file.close()
