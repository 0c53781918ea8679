"""What is to be scored, read and cut into work: a block of rows at a time, their sounds grouped, in units for batches.

source --read, check--> block of rows --group by sound--> clips --cut--> units: what is scored, and written down, at once

How a source is cut depends on its rows alone. A unit's batches hold nothing else, so that its scores are the same to the bit
whatever was scored before it, and whatever kind of source the same rows stand in. A table is one block; a stream's are small.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from xacle.core.clips import Share, content_digest, same_content
from xacle.core.columns import ColumnNames, columns_of, find_column
from xacle.core.sources import Source, SourceRow
from xacle.core.tables import Pair, PairCheck, Problem, cut_of, read_pairs
from xacle.scoring.scorer import Clip

BLOCK_ROWS = 512  # rows of a stream whose sounds are grouped; a sound that stands together is not cut
BLOCK_BYTES = 384 * 2**20  # of sounds that a block may hold


class BlockKey(NamedTuple):
    """Where a block begins: the number of a source's part, the line in it; and the block's own number."""

    part: int
    line: int
    index: int


class _RowOfPart(NamedTuple):
    part: int
    row: SourceRow


@dataclass
class Block:
    """Rows that are read together: the clips to score, in units, and the rows that cannot be scored."""

    key: BlockKey
    units: list[list[Clip]]
    problems: list[Problem] = field(default_factory=list)


def group_by_sound(pairs: Iterable[Pair], content: Callable[[Pair], object]) -> list[Clip]:
    """Clips in order of their first row, each with all its captions.

    Args:
        content: What is the same for pairs of one sound.
    """
    clips: dict[object, Clip] = {}
    for pair in pairs:
        clips.setdefault((content(pair), pair.start, pair.end), Clip(pair.sound, [])).pairs.append(pair)
    return list(clips.values())


def cut_into_units(clips: list[Clip], unit_rows: int, block_rows: int = BLOCK_ROWS) -> list[list[Clip]]:
    """Consecutive clips of at most `unit_rows` rows, or one with up to `block_rows`: of more captions, it is cut as well.

    A unit ends wherever a stream's block would.
    """
    units, rows_of_unit, rows_of_block = [], 0, 0
    for clip in chain.from_iterable(_parts_of_clip(clip, block_rows) for clip in clips):
        rows = len(clip.pairs)
        block_ends = rows_of_block >= block_rows
        if not units or block_ends or rows_of_unit + rows > unit_rows:
            units.append([])
            rows_of_unit, rows_of_block = 0, 0 if block_ends else rows_of_block
        units[-1].append(clip)
        rows_of_unit, rows_of_block = rows_of_unit + rows, rows_of_block + rows
    return units


def _parts_of_clip(clip: Clip, rows: int) -> list[Clip]:
    return [Clip(clip.audio, clip.pairs[start : start + rows]) for start in range(0, len(clip.pairs), rows)]


class TablePlan:
    """
    Tables, read and checked as a whole.

    Args:
        audio_dir: Where their files are; each table's own folder if `None`.
        unit_rows: See [`cut_into_units`].

    Attributes:
        pairs, problems: Their rows that can be scored, and those that cannot.
        total: How many rows there are.
    """

    def __init__(self, source: Source, audio_dir: Path | None, names: ColumnNames, unit_rows: int):
        self.unit_rows = unit_rows
        self.pairs, self.problems = [], []
        for number, part in enumerate(source.parts):
            pairs, problems = read_pairs(Path(part.name), audio_dir or part.folder, names)
            for pair in pairs:
                pair.part = number
            for problem in problems if len(source.parts) > 1 else ():
                problem.part, problem.source = number, part.name
            self.pairs += pairs
            self.problems += problems
        self.sounds = list(dict.fromkeys(pair.audio for pair in self.pairs))
        self.originals = same_content(self.sounds)
        self.total = len(self.pairs) + len(self.problems)

    def clips(self, share: Share) -> list[Clip]:
        """A process' sounds."""
        clips = group_by_sound(self.pairs, lambda pair: self.originals[pair.audio])
        for clip in clips:
            first = clip.pairs[0]
            clip.audio = cut_of(self.originals[first.audio], first.start, first.end)
        return share.take(clips)

    def blocks(self, share: Share, after: BlockKey | None = None) -> Iterator[Block]:
        yield Block(BlockKey(0, 0, 0), cut_into_units(self.clips(share), self.unit_rows), [] if share.index else self.problems)

    def problem(self, pair: Pair, error: str) -> Problem:
        """A row whose sound cannot be decoded."""
        original = self.originals[pair.audio]
        if pair.audio != original:
            error = f"'{pair.audio}' holds the same bytes as '{original}': {error}"
        return Problem(pair.line, error, pair.row)


class StreamPlan:
    """
    A source that is read and checked while it is scored.

    Args: See [`TablePlan`].
    """

    problems = ()
    sounds = ()
    total = None

    def __init__(self, source: Source, audio_dir: Path | None, names: ColumnNames, unit_rows: int):
        self.source, self.audio_dir, self.names, self.unit_rows = source, audio_dir, names, unit_rows
        source.check_columns(names)

    def blocks(self, share: Share, after: BlockKey | None = None) -> Iterator[Block]:
        """A process' blocks: those of every n-th part, or, where parts are few, every n-th of all.

        Args:
            after: Blocks before this one are left out.
        """
        by_part = share.count > 1 and len(self.source.parts) >= share.count
        parts = range(share.index if by_part else 0, len(self.source.parts), share.count if by_part else 1)
        blocks = _blocks_of_rows(self._rows(parts, after), self.names, across_parts=not by_part)
        for index, rows in enumerate(blocks, start=0 if after is None else after.index):
            if by_part or index % share.count == share.index:
                yield self._check(BlockKey(rows[0].part, rows[0].row.line, index), rows)

    def _rows(self, parts: Iterable[int], after: BlockKey | None) -> Iterator[_RowOfPart]:
        for part in parts:
            if after is None or part >= after.part:
                for row in self.source.parts[part].rows(self.names):
                    if after is None or (part, row.line) >= (after.part, after.line):
                        yield _RowOfPart(part, row)

    def _check(self, key: BlockKey, rows: list[_RowOfPart]) -> Block:
        columns = columns_of([(row.line, row.row) for _, row in rows])
        file_column = find_column(columns, self.names.files) or self.names.files[0]
        text_column = find_column(columns, self.names.texts) or self.names.texts[0]
        checks: dict[int, PairCheck] = {}
        pairs, problems = [], []
        for number, (line, row, sound, problem) in rows:
            part = self.source.parts[number]
            if number not in checks:
                checks[number] = PairCheck(file_column, text_column, self.audio_dir or part.folder)
            checked = checks[number](line, row, sound) if problem is None else Problem(line, problem, row)
            checked.part = number
            if isinstance(checked, Problem):
                checked.source = part.name
                problems.append(checked)
            else:
                pairs.append(checked)
        files = same_content(pair.audio for pair in pairs if isinstance(pair.audio, Path))
        digests: dict[int, object] = {}

        def content(pair: Pair):
            sound = pair.audio
            if isinstance(sound, (str, Path)):
                return files.get(sound, sound)
            if id(sound) not in digests:  # captions that stand together share the object
                digests[id(sound)] = _digest(sound)
            return digests[id(sound)]

        return Block(key, cut_into_units(group_by_sound(pairs, content), self.unit_rows), problems)

    def problem(self, pair: Pair, error: str) -> Problem:
        name = "" if pair.wav_file_name in error else f"'{pair.wav_file_name}': "
        return Problem(pair.line, name + error, pair.row)


def _digest(sound) -> object:
    """What is the same for equal sounds; of one that cannot be read, nothing but itself."""
    content = sound.get("bytes") if isinstance(sound, dict) else sound
    try:
        content = content.read() if hasattr(content, "read") else content
    except (OSError, ValueError):
        return id(sound)
    return content_digest(content) if isinstance(content, bytes) else id(sound)


def _blocks_of_rows(rows: Iterable[_RowOfPart], names: ColumnNames, across_parts: bool) -> Iterator[list[_RowOfPart]]:
    """Rows in lists of `BLOCK_ROWS`, and what more the last sound has; fewer where sounds are large, or a part ends."""
    block, size, last = [], 0, None
    for part, row in rows:
        same = last is not None and part == last.part and _same_sound(row, last.row, names)
        if same:
            row = row._replace(sound=last.row.sound)  # once in memory
        elif len(block) >= BLOCK_ROWS or size >= BLOCK_BYTES or (block and part != last.part and not across_parts):
            yield block
            block, size = [], 0
        if not same and isinstance(row.sound, dict):
            size += len(row.sound.get("bytes") or b"")
        last = _RowOfPart(part, row)
        block.append(last)
    if block:
        yield block


def _same_sound(row: SourceRow, last: SourceRow, names: ColumnNames) -> bool:
    if row.sound is None or isinstance(row.sound, dict):
        files = [one.row.get(find_column(one.row, names.files)) for one in (row, last)]
        if row.sound is None or last.sound is None:
            return row.sound is last.sound and files[0] == files[1]
        return isinstance(last.sound, dict) and row.sound.get("bytes", row) == last.sound.get("bytes")
    return row.sound == last.sound
