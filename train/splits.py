"""Splitting rated pairs for model selection, and making sure that what is evaluated was not trained on."""

import json
from pathlib import Path

import numpy as np
from transformers.utils import logging

from xacle.core.clips import ALONE, Share, hash_clips
from xacle.core.columns import FILE_COLUMNS, column_of
from xacle.core.tables import complete_file, read_rows, write_rows
from xacle.train.data import PairTable

logger = logging.get_logger(__name__)


def k_fold(groups: list, folds: int, seed: int = 0) -> np.ndarray:
    """The fold of each row `[rows]`, 0 to `folds - 1`: rows of a group stay together, and folds differ by a group's size
    at most. Seeded; the order of the rows does not matter.

    Raises:
        ValueError: for fewer than two folds, or fewer groups than folds.
    """
    names, index, sizes = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True, return_counts=True)
    if not 2 <= folds <= len(names):
        raise ValueError(f"{len(names)} groups cannot be split into {folds} folds")
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]  # large groups first, equal ones in random order
    fold_of_group, load = np.empty(len(names), dtype=np.int64), np.zeros(folds, dtype=np.int64)
    for group in order:
        fold_of_group[group] = load.argmin()
        load[fold_of_group[group]] += sizes[group]
    return fold_of_group[index]


def split_table(
    table: Path, output_dir: Path, folds: int = 5, by: str | None = None, leave_one_out: bool = False, seed: int = 0
) -> list[tuple[Path, Path]]:
    """Write `fold0_train.csv`, `fold0_validation.csv` and so on: the table's own rows, unchanged and in their order.

    Args:
        by: Rows with the same value in this column stay together; the clip's name by default. `model_id` keeps systems
            together, `text` captions.
        leave_one_out: One fold for every value of `by`, named after it, instead of `folds`.

    Returns:
        The training and the validation file of each fold.

    Raises:
        FileExistsError: if a file is there already.
        ValueError: if the table lacks the column, or a row its value.
    """
    if leave_one_out and not by:
        raise ValueError("leaving one out needs --by, the column that says which, e.g. model_id")
    rows = read_rows(table)
    column = column_of(rows, (by,) if by else FILE_COLUMNS, table)
    for line, row in rows:
        if None in row:
            raise ValueError(f"'{table}', line {line}: more fields than the header has; put texts with commas in quotes")
        if row.get(column) in (None, ""):
            raise ValueError(f"'{table}', line {line}: no {column} to split by")
    groups = [str(row[column]) for _, row in rows]
    if leave_one_out:
        names = sorted(set(groups))
        if len(names) < 2:
            raise ValueError(f"'{table}' has one {column} only: there is nothing to leave out")
        fold_of_row = np.array([names.index(group) for group in groups])
        files_of = [_file_name(name).lower() for name in names]
        if alike := [name for name, file in zip(names, files_of, strict=True) if files_of.count(file) > 1]:
            raise ValueError(f"the folds of {', '.join(map(repr, alike))} would have the same file names; rename one of them")
        names = [_file_name(name) for name in names]
    else:
        fold_of_row = k_fold(groups, folds, seed)
        names = [f"fold{fold}" for fold in range(folds)]
    output_dir.mkdir(parents=True, exist_ok=True)
    files = [tuple(output_dir / f"{name}_{role}{table.suffix.lower()}" for role in ("train", "validation")) for name in names]
    if existing := [str(file) for pair in files for file in pair if file.exists()]:
        raise FileExistsError(f"'{existing[0]}' exists; choose another folder")
    for fold, (train, validation) in enumerate(files):
        _write_part(train, [row for (_, row), of_row in zip(rows, fold_of_row, strict=True) if of_row != fold])
        _write_part(validation, [row for (_, row), of_row in zip(rows, fold_of_row, strict=True) if of_row == fold])
    return files


def _file_name(value: str) -> str:
    return "".join(character if character.isalnum() or character in "-_." else "_" for character in value)


def _write_part(file: Path, rows: list[dict]) -> None:
    if file.suffix == ".jsonl":  # a row may lack a column, and shall not get it
        with complete_file(file) as opened:
            opened.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        write_rows(file, list(rows[0]), (row.values() for row in rows))


def check_overlap(
    train: PairTable, validation: PairTable, allow: bool = False, memory: Path | None = None, share: Share = ALONE
) -> None:
    """Compare two tables' clips by the content of their files, and their captions.

    Captions in both are logged (they are usual in XACLE, where several systems got the same prompt). Clips in both make every
    validation number too good.

    Args:
        memory, share: See [`hash_clips`].

    Raises:
        ValueError: for clips in both, unless `allow`.
    """
    hashes = [
        {digest: table.clips[clip] for clip, digest in hash_clips(table.used_audio, memory, share).items()}
        for table in (train, validation)
    ]
    shared = [(hashes[0][digest], name) for digest, name in hashes[1].items() if digest in hashes[0]]
    if shared:
        examples = ", ".join(first if first == second else f"{first} = {second}" for first, second in shared[:5])
        message = f"{len(shared)} of {len(hashes[1])} validation clips are also trained on: {examples}"
        if not allow:
            raise ValueError(f"{message}; remove them from {train.source}, or pass --allow-overlap true")
        logger.warning(message)
    trained = {train.captions[caption] for caption in set(train.caption_index.tolist())}
    captions = [validation.captions[caption] for caption in set(validation.caption_index.tolist())]
    if common := sum(caption in trained for caption in captions):
        logger.warning(f"{common} of {len(captions)} validation captions also occur in {train.source}")
