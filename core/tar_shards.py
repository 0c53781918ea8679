"""WebDataset's tar shards: `key.flac` (or wav, ogg, mp3) with its captions in `key.json` or `key.txt`.

Members of one key stand next to each other; a key goes up to the first dot of a file's name. Shards that are not compressed
are read in place: a sound is a [`StoredMember`], read when it is needed. Of compressed ones, sounds are read as they come.
"""

import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from xacle.core.columns import ColumnNames, find_column

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SOUND_SUFFIXES = ("wav", "flac", "ogg", "mp3")
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")  # how gzip, bzip2 and xz begin
READ_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class StoredMember:
    """A file within a tar file, read when it is needed, as an open file would be."""

    tar: Path
    offset: int
    size: int

    def seekable(self) -> bool:
        return False

    def read(self) -> bytes:
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise ValueError(f"'{self.tar}' is cut off: it ends within this sound; copy or download it again")
        return content


class Member(NamedTuple):
    """A file of a shard: `content` is a [`StoredMember`] or its bytes. Of damage, there is a `problem` instead."""

    name: str
    content: object = None
    problem: str | None = None


class Caption(NamedTuple):
    """A row of a shard: a sound's columns with one of its captions, or what is wrong with them."""

    row: dict
    sound: object = None
    problem: str | None = None


def shard_name(tar: str | Path) -> str:
    """`folder/shard-003.tar` -> `shard-003`."""
    name = Path(tar).name
    return next((name[: -len(suffix)] for suffix in TAR_SUFFIXES if name.lower().endswith(suffix)), name)


def read_shard(tar: Path, names: ColumnNames) -> Iterator[Caption]:
    """The rows of a shard, in order: one a caption. What cannot be read costs its own rows only."""
    members, current = {}, None
    for member in _members(tar):
        key, suffix = _split(member.name)
        if member.problem is not None or key != current:
            yield from captions_of(shard_name(tar), current, members, names)
            members, current = {}, key
        if member.problem is not None:
            yield Caption({names.files[0]: f"{shard_name(tar)}/{member.name}"}, problem=member.problem)
        elif suffix in members:
            row = {names.files[0]: f"{shard_name(tar)}/{member.name}"}
            yield Caption(row, problem=f"'{tar}' holds '{member.name}' twice; the first is used")
        else:
            members[suffix] = member.content
    yield from captions_of(shard_name(tar), current, members, names)


def _split(name: str) -> tuple[str, str]:
    """`folder/key.flac` -> `folder/key`, `flac`."""
    folder, slash, file = name.rpartition("/")
    key, _, suffix = file.partition(".")
    return folder + slash + key, suffix.lower()


def captions_of(shard: str, key: str | None, members: dict[str, object], names: ColumnNames) -> Iterator[Caption]:
    """The rows of one key.

    Args:
        members: Its files by suffix. `json` is an object with the caption, or a list of them, in the text column, `txt` has a
            caption a line. Lists as long as that of the captions are shared out among the rows. Either may be a dict, or
            text, already.
    """
    sounds = [suffix for suffix in members if suffix in SOUND_SUFFIXES]
    if not sounds and not {"json", "txt"} & set(members):
        return  # another file: a license, for instance
    name = f"{shard}/{key}.{sounds[0] if sounds else next(iter(members))}"
    row = {names.files[0]: name}
    if len(sounds) != 1:
        found = "several sounds" if sounds else f"no sound (.{', .'.join(SOUND_SUFFIXES)})"
        yield Caption(row, problem=f"'{shard}/{key}' has {found} in its shard")
        return
    try:
        columns = _object(members.get("json") or {})
        text_column = find_column(columns, names.texts) or names.texts[0]
        texts = columns.pop(text_column, None)
        if texts is None and "txt" in members:
            texts = [line.strip() for line in _text(members["txt"]).splitlines() if line.strip()]
    except (ValueError, OSError) as error:
        yield Caption(row, problem=f"the captions of '{name}' cannot be read ({error}); a .json holds one object, in UTF-8")
        return
    row |= {column: value for column, value in columns.items() if column != names.files[0]}
    for number, text in enumerate(texts if isinstance(texts, list) and texts else [texts]):
        shared = {
            column: value[number] if isinstance(texts, list) and isinstance(value, list) and len(value) == len(texts) else value
            for column, value in row.items()
        }
        yield Caption({**shared, text_column: text or None}, members[sounds[0]])


def _text(content) -> str:
    content = content.read() if hasattr(content, "read") else content
    return content if isinstance(content, str) else content.decode("utf-8-sig")


def _object(content) -> dict:
    columns = content if isinstance(content, dict) else json.loads(_text(content))
    if not isinstance(columns, dict):
        raise ValueError(f"it holds a {type(columns).__name__}")
    return dict(columns)


def _members(tar: Path) -> Iterator[Member]:
    """The files of a shard, and its damage: what cannot be read must not be taken for its end, as `tarfile` does."""
    with open(tar, "rb") as file:
        compressed = file.read(6).startswith(COMPRESSED)
        file.seek(0)
        last, expected = "its beginning", 0
        try:
            # With ignore_zeros, what is no header is passed over rather than taken for the end.
            with tarfile.open(fileobj=file, mode="r|*" if compressed else "r:", ignore_zeros=True) as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # it would remember all
                    if not compressed and _is_damaged(file, expected, member.offset):
                        yield Member(last, problem=_lost(tar, expected, member.offset, last))
                    expected = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)
                    last = member.name
                    if not member.isreg() or member.name.rpartition("/")[2].startswith("."):
                        continue
                    stored = StoredMember(tar, member.offset_data, member.size)
                    yield Member(member.name, archive.extractfile(member).read() if compressed else stored)
        except READ_ERRORS as error:
            yield Member(last, problem=f"'{tar}' is damaged or cut off after '{last}' ({error}): the rest of it is lost")
            return
        end = tar.stat().st_size
        if not compressed and (_is_damaged(file, expected, end) or end < expected + 2 * BLOCK):
            yield Member(last, problem=_lost(tar, expected, end, last))


def _is_damaged(file, start: int, end: int) -> bool:
    """Whether anything stands between two members: there may be zeros, where tar files are put together, and comments."""
    position = file.tell()
    file.seek(start)
    block = file.read(BLOCK)[: max(0, end - start)]
    while start < end and block and not any(block):
        start += len(block)
        block = file.read(BLOCK)[: max(0, end - start)]
    file.seek(position)
    return start < end and block[156:157] != tarfile.XGLTYPE


def _lost(tar: Path, start: int, end: int, last: str) -> str:
    return (
        f"'{tar}' is damaged or cut off: {end - start} bytes after '{last}' (from byte {start}) are no files of a tar; what "
        "they held is lost. Copy or download it again"
    )
