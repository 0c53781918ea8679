"""Sources of rows, through one door, [`open_source`]: files of every kind, saved folders, data sets of the Hub.

A source has parts (a file each), and a part rows. CSV and JSONL are tables: they are read and checked as a whole. All else is
read row by row, as it streams: sounds come with their rows and are never unpacked to disk.
"""

import glob
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from xacle.core.clips import HASH_BYTES, file_digest
from xacle.core.columns import AUDIO_COLUMN, CUT_COLUMNS, FILE_COLUMNS, ColumnNames, column_of
from xacle.core.tables import TABLE_SUFFIXES, stream_rows
from xacle.core.tar_shards import SOUND_SUFFIXES, TAR_SUFFIXES, captions_of, read_shard, shard_name

SUFFIXES = (*TABLE_SUFFIXES, ".parquet", *TAR_SUFFIXES)
PARQUET_ROWS = 64  # read at once: sounds are large
FILE, KEY, URL = FILE_COLUMNS[0], "__key__", "__url__"  # the latter two: WebDataset, as `datasets` reads it


@dataclass(frozen=True)
class HubDataset:
    """
    A data set of the Hub (or a folder that `datasets.load_dataset` reads).

    Args:
        id: `owner/name`.
        split, config, revision: As for `datasets.load_dataset`.
    """

    id: str
    split: str | None = None
    config: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return self.id + (f" ({self.split})" if self.split else "")


class SourceRow(NamedTuple):
    """
    A row of a source.

    Args:
        line: Its line in the file, or its number in the part, from 1.
        row: Its columns, without sounds. A sound's name stands in a file column.
        sound: What `load_waveform` takes; `None` if the row names a file.
        problem: Why it cannot be used, if that is known already.
    """

    line: int
    row: dict
    sound: object = None
    problem: str | None = None


@dataclass
class Part(ABC):
    """
    A file of a source, or what stands for one.

    Args:
        name: For messages.
        folder: Where the files that its rows name are, unless something else is said.
        columns: Its columns, if they are known without reading it.
    """

    name: str
    folder: Path
    columns: set[str] | None = None

    @abstractmethod
    def rows(self, names: ColumnNames, stored: bool = False) -> Iterator[SourceRow]:
        """
        Args:
            stored: Whether sounds come as objects that are read when they are needed, for whoever keeps them all.
        """


class TextPart(Part):
    """A CSV or JSONL file."""

    def rows(self, names: ColumnNames, stored: bool = False) -> Iterator[SourceRow]:
        for line, row in stream_rows(Path(self.name)):
            sound = row.get(AUDIO_COLUMN)
            yield SourceRow(line, row) if sound is None or isinstance(sound, str) else _with_sound(line, row, names, self.name)


class TarPart(Part):
    """A WebDataset shard."""

    def rows(self, names: ColumnNames, stored: bool = False) -> Iterator[SourceRow]:
        for number, caption in enumerate(read_shard(Path(self.name), names), start=1):
            sound = caption.sound
            if isinstance(sound, bytes):
                if stored:
                    raise ValueError(f"'{self.name}' is compressed, which only scoring reads; unpack it to a .tar (gunzip)")
                sound = {"bytes": sound}
            yield SourceRow(number, caption.row, sound, caption.problem)


@dataclass(frozen=True)
class StoredCell:
    """A sound in a Parquet file, read when it is needed, as an open file would be."""

    file: str
    column: str
    row: int

    def seekable(self) -> bool:
        return False

    def read(self) -> bytes:
        starts = _row_group_starts(self.file)
        group = max(index for index, start in enumerate(starts) if start <= self.row)
        cell = _row_group(self.file, group, self.column)[self.row - starts[group]].as_py()
        cell = cell.get("bytes") if isinstance(cell, dict) else cell
        if cell is None:
            raise ValueError(f"'{self.file}', row {self.row + 1}: the column {self.column} holds no sound")
        return cell


@lru_cache(maxsize=256)
def _row_group_starts(file: str) -> list[int]:
    from pyarrow import parquet

    metadata = parquet.read_metadata(file)
    starts = [0]
    for group in range(metadata.num_row_groups - 1):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    return starts


@lru_cache(maxsize=1)
def _row_group(file: str, group: int, column: str):
    from pyarrow import parquet

    return parquet.ParquetFile(file).read_row_group(group, columns=[column]).column(column)


class ParquetPart(Part):
    """A Parquet file; its sounds are binary columns, or what `datasets` writes for its `Audio`."""

    def rows(self, names: ColumnNames, stored: bool = False) -> Iterator[SourceRow]:
        from pyarrow import parquet

        file = parquet.ParquetFile(self.name, pre_buffer=False, buffer_size=2**20)
        sounds = [column.name for column in file.schema_arrow if _holds_sounds(column.type)]
        wanted = [column.name for column in file.schema_arrow]
        if stored:  # all but the sounds themselves
            wanted = [column.path for column in map(file.schema.column, range(len(file.schema)))]
            wanted = [path for path in wanted if path not in {*sounds, *(f"{column}.bytes" for column in sounds)}]
        line = 0
        for batch in file.iter_batches(PARQUET_ROWS, columns=wanted):
            for row in batch.to_pylist():
                line += 1
                if stored:
                    cells = {column: StoredCell(self.name, column, line - 1) for column in sounds}
                    row |= {
                        column: {"path": (row.get(column) or {}).get("path"), "bytes": cell} for column, cell in cells.items()
                    }
                yield _with_sound(line, row, names, self.name)


def _holds_sounds(kind) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


@dataclass
class StoredRow:
    """A sound in a `datasets.Dataset`, read when it is needed, as an open file would be."""

    dataset: object
    row: int
    column: str

    def seekable(self) -> bool:
        return False

    def read(self) -> bytes:
        return self.dataset[self.row][self.column]["bytes"]


@dataclass
class DatasetPart(Part):
    """A `datasets.Dataset`, or a shard of a `datasets.IterableDataset`."""

    dataset: object = None

    def rows(self, names: ColumnNames, stored: bool = False) -> Iterator[SourceRow]:
        column = names.audio or AUDIO_COLUMN
        line = 0
        for number, row in enumerate(self.dataset):
            if KEY in row:
                for caption in self._captions(row, names, number if stored else None):
                    line += 1
                    yield SourceRow(line, caption.row, caption.sound, caption.problem)
                continue
            line += 1
            if stored and isinstance(row.get(column), dict) and row[column].get("bytes") is not None:
                row = {**row, column: {**row[column], "bytes": self._stored(number, column)}}
            yield _with_sound(line, row, names, self.name)

    def _stored(self, number: int, column: str) -> StoredRow:
        return StoredRow(self.dataset.select_columns([column]), number, column)

    def _captions(self, row: dict, names: ColumnNames, number: int | None):
        """The rows of a sample of WebDataset."""
        members = {suffix: value for suffix, value in row.items() if value is not None and suffix not in (KEY, URL)}
        for suffix in SOUND_SUFFIXES:
            if suffix in members and number is not None:
                members[suffix] = self._stored(number, suffix)
        return captions_of(shard_name(row.get(URL) or self.name), row[KEY], members, names)


def _with_sound(line: int, row: dict, names: ColumnNames, source: str) -> SourceRow:
    """A row with its sound taken out of its columns, and the sound's name put into one."""
    column = names.audio or AUDIO_COLUMN
    sound = row.get(column)
    if isinstance(sound, (bytes, bytearray)):
        sound = {"bytes": bytes(sound), "path": None}
    if not isinstance(sound, dict):
        return SourceRow(line, row)
    row = {name: value for name, value in row.items() if name != column}
    known = next((row[name] for name in FILE_COLUMNS if isinstance(row.get(name), str) and row[name]), None)
    name = known or sound.get("path") or f"{Path(source).stem}/{line}"
    row = {names.files[0]: name, **row}
    content = sound.get("bytes")
    if content is not None:
        return SourceRow(line, row, content if hasattr(content, "read") else {"bytes": content})
    if sound.get("array") is not None:
        return SourceRow(line, row, {key: sound[key] for key in ("array", "sampling_rate")})
    if sound.get("path"):
        return SourceRow(line, {**row, names.files[0]: sound["path"]})
    return SourceRow(line, row, problem=f"the column {column} holds no sound")


# --- The door ------------------------------------------------------------------------------------------------------------


@dataclass
class Source:
    """
    What is scored, or trained on.

    Args:
        name: For messages.
        parts: Its files.
        streams: Whether rows are read one by one while they are scored; tables are read and checked before.
        identity: What says whether it is still the same, besides its files' sizes and times of change.
        files: Those of its parts that are local files.
    """

    name: str
    parts: list[Part]
    streams: bool
    identity: list = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def revision(self) -> str | None:
        """`owner/name@commit` of a data set of the Hub."""
        return f"{self.identity[0]}@{self.identity[-1]}" if self.identity else None

    def check_columns(self, names: ColumnNames) -> None:
        """Raise `ValueError` if a part whose columns are known lacks a column."""
        for part in self.parts:
            if part.columns is not None and KEY not in part.columns:
                columns = [(0, dict.fromkeys(part.columns))]
                column_of(columns, (*names.files, AUDIO_COLUMN) if names.audio is None else names.files, part.name)
                column_of(columns, names.texts, part.name)

    def digest(self) -> str:
        """What a job's journal knows the source by: the content of tables; sizes and times of change of other files."""
        digest = hashlib.blake2b(digest_size=HASH_BYTES)
        for file in self.files:
            if self.streams:
                inner = sorted(file.rglob("*")) if file.is_dir() else [file]
                known = [[path.stat().st_size, path.stat().st_mtime_ns] for path in inner]
                digest.update(repr(known).encode())
            else:
                file_digest(file, digest)
        digest.update(repr(self.identity).encode() if self.identity else b"")
        return digest.hexdigest()


def open_source(source, split: str | None = None, stream: bool = True) -> Source:
    """Open whatever has rows of sounds and captions; nothing is read yet but what says what it is.

    Args:
        source: A [`HubDataset`]; a `datasets.Dataset`; a path, a pattern (`shards/*.tar`), or a list of them: CSV, JSONL,
            Parquet, WebDataset tar files, a folder of `save_to_disk`.
        split: Of a saved folder with several.
        stream: Whether data sets of the Hub are streamed; else they are downloaded.

    Raises:
        FileNotFoundError, ValueError, ConnectionError: if there is nothing of the kind.
    """
    if isinstance(source, HubDataset):
        return _open_hub(source, stream)
    if not isinstance(source, (str, os.PathLike, list, tuple)):
        return _of_dataset(source, "the dataset", Path(), streams=True)
    given = [source] if isinstance(source, (str, os.PathLike)) else source
    files = [file for name in given for file in _expand(name)]
    resolved = [file.resolve() for file in files]
    if twice := [file for place, file in enumerate(files) if resolved[place] in resolved[:place]]:
        raise ValueError(f"'{twice[0]}' is given twice")
    if any(file.is_dir() for file in files):
        if len(files) > 1:
            raise ValueError(f"'{files[0]}' and others: a folder of save_to_disk is given alone")
        return _open_saved(files[0], split)
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        raise ValueError(f"'{files[0]}' and others are of several kinds: pass tables, Parquet files or tar shards, not both")
    kind = kinds.pop()
    parts = [kind(str(file), file.parent) for file in files]
    if kind is ParquetPart:
        for part in parts:
            part.columns = _parquet_columns(part.name)
    name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    return Source(name, parts, kind is not TextPart, files=files)


def _expand(name: str | os.PathLike) -> list[Path]:
    """A path, or the files that a pattern matches, by name."""
    path = Path(name)
    if not path.exists() and glob.has_magic(str(name)):
        if not (found := sorted(glob.glob(str(name), recursive=True))):
            raise FileNotFoundError(f"no files match '{name}'")
        return [Path(file) for file in found]
    if not path.exists():
        raise FileNotFoundError(f"no table at '{path}'")
    return [path]


def _kind(file: Path) -> type[Part]:
    name = file.name.lower()
    if name.endswith(TAR_SUFFIXES):
        return TarPart
    if name.endswith(".parquet"):
        return ParquetPart
    if name.endswith(TABLE_SUFFIXES):
        return TextPart
    raise ValueError(f"'{file}' must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")


def _parquet_columns(file: str) -> set[str]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return set(parquet.read_schema(file).names)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"'{file}' cannot be read as Parquet ({error}); copy or download it again") from error


def _open_saved(folder: Path, split: str | None) -> Source:
    known = [(folder / name).is_file() for name in ("state.json", "dataset_dict.json")]
    if not any(known):
        raise IsADirectoryError(f"'{folder}' is a folder, not a table (.csv, .jsonl) nor one of datasets' save_to_disk")
    from datasets import load_from_disk

    dataset = load_from_disk(str(folder))
    if isinstance(dataset.column_names, dict) and split is not None:
        if split not in dataset:
            raise ValueError(f"'{folder}' has no split {split}; it has {', '.join(dataset)}")
        dataset = dataset[split]
    opened = _of_dataset(dataset, str(folder), folder, streams=True)
    opened.files = [folder]
    return opened


def _open_hub(source: HubDataset, stream: bool) -> Source:
    from datasets import load_dataset
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    revision = source.revision
    if not Path(source.id).is_dir():
        try:
            revision = HfApi().dataset_info(source.id, revision=revision).sha
        except OfflineModeIsEnabled:
            pass  # what is in the cache then
        except HfHubHTTPError as error:
            message = str(error).strip().splitlines()[0]
            raise ValueError(f"the data set '{source}' cannot be read from the Hub: {message}") from error
    try:
        dataset = load_dataset(source.id, source.config, split=source.split, revision=revision, streaming=stream)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the data set '{source}' cannot be read: {str(error).splitlines()[0]}") from error
    if source.split is None:
        if len(dataset) > 1:
            raise ValueError(f"'{source.id}' has the splits {', '.join(dataset)}: choose one (--split)")
        dataset = next(iter(dataset.values()))
    opened = _of_dataset(dataset, str(source), Path(), streams=True)
    opened.identity = [source.id, source.config, source.split, revision]
    return opened


def _of_dataset(dataset, name: str, folder: Path, streams: bool) -> Source:
    """A `datasets.Dataset` or `IterableDataset`; of the latter, each file is a part."""
    if not hasattr(dataset, "column_names") or isinstance(dataset.column_names, dict):
        splits = f"; it has the splits {', '.join(dataset)}: choose one (--split)" if isinstance(dataset, dict) else ""
        raise ValueError(f"{name} must be one `datasets.Dataset` with one split, got a {type(dataset).__name__}{splits}")
    from datasets import Audio, IterableDataset

    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, Audio):  # decoded here, by soundfile
            dataset = dataset.cast_column(column, Audio(decode=False))
    columns = None if dataset.column_names is None else set(dataset.column_names)
    shards = [dataset]
    if isinstance(dataset, IterableDataset) and dataset.num_shards > 1:
        shards = [dataset.shard(dataset.num_shards, index) for index in range(dataset.num_shards)]
    names = [name if len(shards) == 1 else f"{name}, file {number}" for number in range(1, len(shards) + 1)]
    return Source(name, [DatasetPart(part, folder, columns, shard) for part, shard in zip(names, shards, strict=True)], streams)


def kept_columns(row: dict, names: ColumnNames, keep: str | Sequence[str]) -> dict:
    """The columns of a row that are carried through: `start` and `end` where they are, and those asked for (`"all"`, or
    names)."""
    standard = {*names.files, *names.texts, *FILE_COLUMNS, None}
    wanted = [name for name in row if name not in standard] if keep == "all" else [*CUT_COLUMNS, *keep]
    return {name: row[name] for name in dict.fromkeys(wanted) if name in row}
