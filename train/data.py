"""What is trained on: tables, read and checked before any work, each clip and each caption held once; plain datasets.

Ratings have `average_score` (or `score` and `listener_id`, see listeners.py), pseudo-labels `clap_score`, captions neither.
"""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers.utils import logging

from xacle.core.clips import hash_clips
from xacle.core.columns import (
    AUDIO_COLUMN,
    AVERAGE_COLUMNS,
    FILE_COLUMNS,
    LABEL_COLUMNS,
    LISTENER_COLUMNS,
    LISTENER_ID_COLUMNS,
    PSEUDO_LABEL_COLUMNS,
    TEXT_COLUMNS,
    ColumnNames,
    column_of,
    find_column,
)
from xacle.core.sources import Source, SourceRow, open_source
from xacle.core.tables import (
    Problem,
    TableError,
    cut_of,
    header_problem,
    locate_audio,
    missing_folder,
    pair_problem,
    read_cut,
    shortest,
    write_problems,
)
from xacle.modeling_xacle import RATING_CENTER, RATING_HALF_RANGE
from xacle.train.arguments import TrainingArguments
from xacle.train.listeners import ListenerRating, pair_ratings

logger = logging.get_logger(__name__)

FILE, TEXT, LISTENER_ID = FILE_COLUMNS[0], TEXT_COLUMNS[0], LISTENER_ID_COLUMNS[0]
AUDIO, SCORE = AUDIO_COLUMN, "score"  # with `text`, the columns of a plain dataset


@dataclass
class PairTable:
    """
    Pairs of a clip and a caption, with labels.

    Args:
        source: The table's name, for messages.
        clips: Names of the distinct clips, as they are in the table.
        audio: For each, what `load_waveform` takes: a path, URL, bytes or `datasets` dict.
        captions: The distinct captions.
        clip_index, caption_index: `[pairs]` int32, into `clips` and `captions`.
        lines: `[pairs]` int32, each pair's line in the table (the first, of several listeners').
        labels: `[pairs]` float32 on the 0-10 scale; `None` for captions.
        label_column: What the labels are called in a table of pairs; `None` for captions.
        pseudo_labels: Whether the labels were cosines.
        revision: What a data set of the Hub is known by: `owner/name@commit`.
        problems: Rows that were left out (`on_error="skip"`).
    """

    source: str
    clips: list[str]
    audio: list
    captions: list[str]
    clip_index: np.ndarray
    caption_index: np.ndarray
    lines: np.ndarray
    labels: np.ndarray | None = None
    label_column: str | None = None
    pseudo_labels: bool = False
    revision: str | None = None
    problems: list[Problem] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.clip_index)

    @property
    def used_audio(self) -> dict[int, object]:
        """The sounds that pairs refer to, by the clip's index."""
        return {int(clip): self.audio[clip] for clip in np.unique(self.clip_index)}

    def take(self, pairs: np.ndarray) -> "PairTable":
        """The table of some pairs, by index or mask; clips and captions keep their numbers."""
        columns = ("clip_index", "caption_index", "lines", "labels")
        return replace(self, **{name: getattr(self, name)[pairs] for name in columns if getattr(self, name) is not None})

    def without_clips(self, errors: dict[int, Exception]) -> "PairTable":
        """The table without the pairs of some clips, which join its `problems`."""
        bad = np.isin(self.clip_index, list(errors))
        problems = [
            Problem(int(self.lines[pair]), str(errors[int(self.clip_index[pair])]), self._row(pair))
            for pair in np.flatnonzero(bad)
        ]
        problems = sorted(self.problems + problems, key=lambda problem: problem.line)
        return replace(self.take(~bad), problems=problems)

    def _row(self, pair: int) -> dict:
        """A pair as a row of a table."""
        row = {FILE: self.clips[self.clip_index[pair]], TEXT: self.captions[self.caption_index[pair]]}
        if self.labels is not None:
            label = self.labels[pair]
            if self.pseudo_labels:
                label = (label - RATING_CENTER) / RATING_HALF_RANGE
            row[self.label_column] = shortest(label)
        return row


class _Numbering(dict):
    """Numbers distinct keys in the order they come."""

    def __missing__(self, key):
        self[key] = len(self)
        return self[key]


def read_table(
    source,
    audio_dir: str | Path | None = None,
    label: str = "rating",
    *,
    on_error: str = "stop",
    listener_screening: float | None = None,
    listener_standardization: bool = False,
    audio_dir_option: str = "--audio-dir",
    names: ColumnNames | None = None,
) -> PairTable:
    """
    Args:
        source: Whatever [`open_source`] takes (tables, Parquet, tar shards, a saved folder, a [`HubDataset`], which is
            downloaded), or a `datasets.Dataset`, with the columns `wav_file_name`, `text` and the label's. Sounds may stand in
            a column `audio` instead of files.
        audio_dir: Where the files are; the table's own folder by default.
        label: `"rating"`, `"pseudo_label"`, `"any"` of the two, or `"caption"`.
        on_error: `"stop"` raises on the first table with rows that cannot be used, naming them all; `"skip"` leaves those
            rows out and lists them in `problems`.
        listener_screening, listener_standardization: See [`pair_ratings`]; for tables of single listeners' ratings.
        audio_dir_option: What the user calls `audio_dir`, for messages.
        names: What the source calls its columns.

    Raises:
        TableError: see `on_error`; also if no row can be used.
        FileNotFoundError, ValueError: if the table itself cannot be read or lacks a column.
    """
    if label not in LABEL_COLUMNS:
        raise ValueError(f"label must be one of {', '.join(LABEL_COLUMNS)}, got {label!r}")
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error must be 'stop' or 'skip', got {on_error!r}")
    opened = open_source(source, stream=False)
    name, audio_dir = opened.name, Path(audio_dir or opened.parts[0].folder)
    reader = _Reader(opened, label, audio_dir, names or ColumnNames())
    reader.read()
    table = reader.finish(listener_screening, listener_standardization)
    if reader.off_scale and on_error == "skip":
        advice = f"{reader.off_scale} labels are off their scale, which leaving rows out does not fix; rescale the column"
        raise TableError(name, table.problems, advice, use="used")
    if table.problems and on_error == "stop":
        advice = "nothing was done; fix them, or leave them out (--on-error skip)"
        if reader.off_scale:
            advice = "nothing was done; rescale the column"
        if not len(table):
            advice = missing_folder(table.problems, audio_dir, audio_dir_option) or advice
        raise TableError(name, table.problems, advice, use="used")
    if not len(table):
        raise TableError(name, table.problems, "no row can be used", use="used")
    if table.labels is not None:
        _warn_about_range(table, reader.label)
    return table


def _warn_about_range(table: PairTable, label: str) -> None:
    low, high = float(table.labels.min()), float(table.labels.max())
    if label == "rating" and high <= 5:
        logger.warning(
            f"the ratings of {table.source} run from {low:g} to {high:g}; if their scale is not 0 to 10, rescale them"
        )


def write_rejected(table: PairTable, training: TrainingArguments, name: str) -> None:
    """Write the rows of a table that were left out to `<output_dir>/rejected_<name>.csv`, and log it."""
    if table.problems and training.process_index == 0:
        path = Path(training.output_dir) / f"rejected_{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_problems(path, table.problems)
        logger.warning(f"{len(table.problems)} rows of {table.source} are left out, listed with reasons in {path}")


def check_labels(table: PairTable) -> None:
    """Raise `ValueError` if all labels are equal, which ranks nothing."""
    if table.labels is not None and len(table) > 1 and table.labels.min() == table.labels.max():
        label = table._row(0)[table.label_column]
        raise ValueError(f"all labels of '{table.source}' are equal ({label}): nothing can be ranked")


class _Reader:
    """Collects a table's rows, and everything that is wrong with them."""

    def __init__(self, source: Source, label: str, audio_dir: Path, names: ColumnNames):
        self.source, self.name, self.label, self.audio_dir, self.names = source, source.name, label, audio_dir, names
        self.label_columns = names.labels(label)
        self.file_column = self.text_column = self.label_column = None
        self.columns: set[str] = set()
        self.off_scale = 0
        self.clips, self.captions = _Numbering(), _Numbering()
        self.audio, self.clip_problems = [], []
        self.sounds: dict[str, list[tuple]] = defaultdict(list)  # of rows that hold theirs, by name: the sound, its digest
        self.clip_index, self.caption_index, self.labels, self.lines = [], [], [], []
        self.listener_ratings: list[ListenerRating] = []
        self.first_line: dict[tuple[int, int], int] = {}  # of each rated pair
        self.problems: list[Problem] = []

    def read(self) -> None:
        """All rows; of several files, rows are numbered through."""
        several, before, line = len(self.source.parts) > 1, 0, 0
        rows = tqdm(desc=f"reading {Path(self.name).name}", unit=" rows", delay=2)
        for part in self.source.parts:
            for row in part.rows(self.names, stored=True):
                line = before + row.line
                found = len(self.problems)
                self.add(row._replace(line=line))
                for problem in self.problems[found:] if several else ():
                    problem.line, problem.source = row.line, part.name
                rows.update()
            before = line
        rows.close()

    def add(self, given: SourceRow) -> None:
        line, row, sound, problem = given
        if None in (self.file_column, self.text_column) or (self.label_columns and self.label_column is None):
            self._find_columns(row)
        value, reason = 0.0, problem
        if reason is None:
            reason = pair_problem(row, self.file_column or FILE, self.text_column or TEXT)
        if reason is None and self.label_columns:
            value, reason = self._label(row)
        if reason is None and self._per_listener and row.get(LISTENER_ID) in (None, ""):
            reason = f"no {LISTENER_ID}"
        if reason is None:
            clip, reason = self._clip(row, sound)
        if reason is None:
            reason = self.clip_problems[clip]
        if reason is None and self.label == "rating":
            first = self.first_line.setdefault((clip, self.captions[row[self.text_column]]), line)
            if first != line and not self._per_listener:
                reason = f"'{row[self.file_column]}' with this caption has a mean rating on line {first} already"
        if reason is not None:
            self.problems.append(Problem(line, reason, row))
        elif self._per_listener:
            pair = (clip, self.captions[row[self.text_column]])
            self.listener_ratings.append(ListenerRating(pair, str(row[LISTENER_ID]), value))
        else:
            self._keep(clip, self.captions[row[self.text_column]], value, line)

    def _keep(self, clip: int, caption: int, label: float, line: int) -> None:
        self.clip_index.append(clip)
        self.caption_index.append(caption)
        self.labels.append(label)
        self.lines.append(line)

    @property
    def _per_listener(self) -> bool:
        if self.label_column is not None and self.label_column == self.names.score:
            return self.label == "rating" and LISTENER_ID in self.columns
        return self.label_column in LISTENER_COLUMNS

    def _find_columns(self, row: dict) -> None:
        """Look for the columns that no row had so far: in JSONL, rows may lack some."""
        self.columns.update(name for name in row if name is not None)
        self.file_column = find_column(self.columns, self.names.files)
        self.text_column = find_column(self.columns, self.names.texts)
        self.label_column = find_column(self.columns, self.label_columns)
        if self.label_column:
            pseudo = self.label_column in PSEUDO_LABEL_COLUMNS or self.label == "pseudo_label"
            self.label = "pseudo_label" if pseudo else "rating"

    def _check_columns(self) -> None:
        """Raise `ValueError` if a column is in no row at all."""
        if not self.columns:
            raise ValueError(f"'{self.name}' has no rows")
        needed = [self.names.files, self.names.texts]
        if self.label_columns:
            needed.append(self.label_columns)
        if self._per_listener:
            needed.append(LISTENER_ID_COLUMNS)
        for names in needed:
            column_of([(0, dict.fromkeys(self.columns))], names, self.name)

    def _label(self, row: dict) -> tuple[float, str | None]:
        """The label on the 0-10 scale, and what is wrong with it."""
        low, high = (-1.0, 1.0) if self.label == "pseudo_label" else (0.0, 10.0)
        try:
            value = float(row[self.label_column])
        except (KeyError, TypeError, ValueError):
            value = float("nan")
        if not low <= value <= high:
            hint = "" if np.isnan(value) else "; rescale the column"
            self.off_scale += not np.isnan(value)
            column = self.label_column or self.label_columns[0]
            return 0.0, f"{column} must be a number from {low:g} to {high:g}, got {row.get(column)!r}{hint}"
        return (RATING_CENTER + RATING_HALF_RANGE * value if self.label == "pseudo_label" else value), None

    def _clip(self, row: dict, sound) -> tuple[int, str | None]:
        """The number of a row's clip, and what is wrong with its cut."""
        start, end, reason = read_cut(row)
        name = row[self.file_column]
        clip = self.clips[name, start, end, 0 if sound is None else self._sound_of_name(name, sound)]
        if clip == len(self.audio):
            sound = locate_audio(name, self.audio_dir) if sound is None else sound
            self.audio.append(cut_of(sound, start, end))
            self.clip_problems.append(header_problem(sound, start, end) if isinstance(sound, Path) else None)
        return clip, reason

    def _sound_of_name(self, name: str, sound) -> int:
        """Which of the sounds with a name this is: folders of a data set may hold files of one name."""
        sounds = self.sounds[name]
        if not sounds:
            sounds.append((sound, None))
            return 0
        if sounds[-1][0] == sound:  # the captions of a tar's sound stand together
            return len(sounds) - 1
        digests = hash_clips({index: known for index, (known, digest) in enumerate(sounds) if digest is None})
        for index, digest in digests.items():
            sounds[index] = sounds[index][0], digest
        digest = hash_clips({0: sound})[0]
        known = [found for _, found in sounds]
        if digest not in known:
            sounds.append((sound, digest))
            return len(sounds) - 1
        return known.index(digest)

    def finish(self, listener_screening: float | None, listener_standardization: bool) -> PairTable:
        self._check_columns()
        clips = [name for name, *_ in self.clips]
        captions = list(self.captions)
        if self._per_listener:
            for pair, mean in pair_ratings(self.listener_ratings, listener_screening, listener_standardization).items():
                if mean is None:
                    row = {self.file_column: clips[pair[0]], self.text_column: captions[pair[1]]}
                    reason = f"no two listeners of this pair agree within {listener_screening:g} points"
                    self.problems.append(Problem(self.first_line[pair], reason, row))
                else:
                    self._keep(*pair, mean, self.first_line[pair])
        elif listener_screening is not None or listener_standardization:
            raise ValueError(
                f"'{self.name}' holds no single listeners' ratings (score and listener_id): listener screening and "
                "standardization need them"
            )
        return PairTable(
            source=self.name,
            clips=clips,
            audio=self.audio,
            captions=captions,
            clip_index=np.array(self.clip_index, dtype=np.int32),
            caption_index=np.array(self.caption_index, dtype=np.int32),
            lines=np.array(self.lines, dtype=np.int32),
            labels=np.array(self.labels, dtype=np.float32) if self.label_column else None,
            label_column=AVERAGE_COLUMNS[0] if self._per_listener else self.label_column,
            pseudo_labels=self.label == "pseudo_label",
            revision=self.source.revision,
            problems=self.problems if len(self.source.parts) > 1 else sorted(self.problems, key=lambda problem: problem.line),
        )


# --- Without a table -----------------------------------------------------------------------------------------------------


def check_pairs(dataset, name: str, task: str = "scoring"):
    """What a trainer is given to train on or to evaluate with, checked as far as that needs no decoding.

    Args:
        dataset: A `datasets.Dataset` or a list of dicts with `audio` (what `load_waveform` takes), `text` and, to learn
            scoring, `score` from 0 to 10. Anything else is returned as it is. A dict of datasets is checked one by one.
        name: For messages.

    Returns:
        The dataset, with its sounds as they are stored: they are decoded for each batch, by soundfile.

    Raises:
        ValueError: for a missing column, fewer than two pairs to rank, captions that are empty, and scores that are no numbers
            from 0 to 10, naming the first row.
    """
    if isinstance(dataset, dict):
        return {part: check_pairs(pairs, f"{name}[{part!r}]", task) for part, pairs in dataset.items()}
    if isinstance(dataset, (list, tuple)):
        columns = set(dataset[0]) if dataset else set()
    elif getattr(dataset, "column_names", None):
        columns = set(dataset.column_names)
    else:
        return dataset
    needed = [AUDIO, TEXT, SCORE] if task == "scoring" else [AUDIO, TEXT]
    if missing := [column for column in needed if column not in columns]:
        raise ValueError(f"{name} has no column {' or '.join(missing)}; it has {', '.join(sorted(columns)) or 'no rows'}")
    if hasattr(dataset, "cast_column"):
        from datasets import Audio

        if isinstance((dataset.features or {}).get(AUDIO), Audio):
            dataset = dataset.cast_column(AUDIO, Audio(decode=False))
    if not hasattr(dataset, "__len__"):
        return dataset
    if task == "scoring" and len(dataset) < 2:
        raise ValueError(f"{name} has {len(dataset)} pair; ranks need at least two")
    texts = [pair[TEXT] for pair in dataset] if isinstance(dataset, (list, tuple)) else dataset[TEXT]
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name}, row {row}: no caption, got {text!r}")
    if task == "scoring":
        scores = [pair[SCORE] for pair in dataset] if isinstance(dataset, (list, tuple)) else dataset[SCORE]
        for row, score in enumerate(scores):
            if not isinstance(score, (int, float, np.number)) or not 0 <= score <= 10:
                raise ValueError(f"{name}, row {row}: score must be a number from 0 to 10, got {score!r}; rescale the column")
    return dataset
