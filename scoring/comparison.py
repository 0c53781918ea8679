"""`xacle compare`: which of several systems scores higher on the same prompts, and whether that is more than chance."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from transformers.utils import logging

from xacle.core.columns import PREDICTION_COLUMNS, column_of
from xacle.core.tables import (
    REJECTED_SUFFIX,
    TABLE_SUFFIXES,
    check_distinct,
    check_output,
    complete_file,
    number_of,
    write_rows,
)
from xacle.scoring.plots import save_plot
from xacle.scoring.score_files import COSINE, RATING, PairKey, ScoreFile, pairs_by_text, read_sidecar
from xacle.scoring.significance import PairedTest, bootstrap_means, holm, interval, paired_test

logger = logging.get_logger(__name__)

MAX_LISTED = 20  # unpaired prompts named for each table
SIGNIFICANT = 0.05


@dataclass
class System:
    """A system's mean score over the prompts with its 95 % confidence interval (bootstrap)."""

    name: str
    mean: float
    low: float
    high: float


@dataclass
class SystemPair:
    """Two systems, the first with the higher mean, tested against each other; p-values also corrected by Holm's method."""

    first: str
    second: str
    test: PairedTest
    p_t_test_holm: float
    p_bootstrap_holm: float


@dataclass
class Comparison:
    """What [`compare`] finds: systems by mean score, the highest first, and all pairs of them."""

    prompts: int
    paired_by: str
    systems: list[System]
    pairs: list[SystemPair]

    def __str__(self) -> str:
        names = max(len("system"), *(len(system.name) for system in self.systems))
        lines = [f"{len(self.systems)} systems, {self.prompts} prompts, paired by {self.paired_by}", ""]
        lines.append(f"{'system':<{names}}{'mean':>9}   95 % interval")
        for system in self.systems:
            lines.append(f"{system.name:<{names}}{system.mean:>9.3f}   [{system.low:.3f}, {system.high:.3f}]")
        labels = [f"{pair.first} - {pair.second}" for pair in self.pairs]
        width = max(map(len, ["difference", *labels]))
        columns = f"{'95 % interval':<18}{'wins/ties/losses':>16}{'t-test p':>11}{'bootstrap p':>14}"
        lines += ["", f"{'difference':<{width}}{'mean':>9}   {columns}"]
        for label, pair in zip(labels, self.pairs, strict=True):
            test, span = pair.test, f"[{pair.test.low:+.3f}, {pair.test.high:+.3f}]"
            counts = f"{test.wins}/{test.ties}/{test.losses}"
            p_values = f"{_p_value(pair.p_t_test_holm):>11}{_p_value(pair.p_bootstrap_holm):>14}"
            lines.append(f"{label:<{width}}{test.difference:>+9.3f}   {span:<18}{counts:>16}{p_values}")
        corrected = f", corrected for {len(self.pairs)} comparisons (Holm)" if len(self.pairs) > 1 else ""
        lines.append(f"\np: two-sided, paired over prompts{corrected}; * below {SIGNIFICANT}")
        return "\n".join(lines)


def _p_value(p: float) -> str:
    return ("<0.0001" if p < 1e-4 else f"{p:.4f}") + ("*" if p < SIGNIFICANT else " ")


def compare(paths: Sequence[Path], resamples: int = 10000, seed: int = 0, by: str | None = None) -> Comparison:
    """
    Args:
        paths: Tables with `wav_file_name` and `pred_score` (and `text`), a system each; a folder stands for those in it.
        resamples: Of the bootstrap.
        by: A column of one table, whose values are the systems. (For a comparison of several tables within each value, see
            [`compare_each`].)

    Raises:
        FileNotFoundError, ValueError: for fewer than two systems, tables that cannot be read, fewer than two prompts, prompts
            that one system has and another lacks (all are listed), or tables of which one holds ratings and another cosines.
    """
    if by is None:
        tables = tables_of(paths)
        _check_same_kind(tables)
        return _compare(dict(zip(names_of(tables), map(ScoreFile, tables), strict=True)), resamples, seed)
    tables = tables_of(paths, least=1)
    if len(tables) > 1:
        raise ValueError(f"the systems are the values of {by} in one table, got {len(tables)} tables")
    files = ScoreFile(tables[0]).split(by)
    if len(files) < 2:
        raise ValueError(f"a comparison needs at least two systems; '{tables[0]}' has one {by}: {next(iter(files))}")
    return _compare(files, resamples, seed)


def compare_each(paths: Sequence[Path], by: str, resamples: int = 10000, seed: int = 0) -> dict[str, Comparison]:
    """[`compare`] within each value of a column that all tables have; values with a single prompt are left out, with a warning.

    P-values are corrected within each comparison, not over all of them.

    Raises:
        FileNotFoundError, ValueError: see [`compare`]; also if a row has no value, or a table lacks one that another has.
    """
    tables = tables_of(paths)
    _check_same_kind(tables)
    names = names_of(tables)
    parts = [ScoreFile(table).split(by) for table in tables]
    values = list(dict.fromkeys(value for part in parts for value in part))
    comparisons = {}
    for value in sorted(values):
        if lacking := [table for table, part in zip(tables, parts, strict=True) if value not in part]:
            raise ValueError(f"'{lacking[0]}' has no row whose {by} is '{value}'; all systems must score the same prompts")
        files = {name: part[value] for name, part in zip(names, parts, strict=True)}
        if len(parts[0][value].rows) < 2:
            logger.warning(f"{by} '{value}' has a single prompt and is left out")
            continue
        try:
            comparisons[value] = _compare(files, resamples, seed)
        except ValueError as error:
            raise ValueError(f"{by} '{value}': {error}") from error
    return comparisons


def _check_same_kind(tables: Sequence[Path]) -> None:
    kinds = {str(table): read_sidecar(table).get("kind", RATING) for table in tables}
    cosines = [table for table, kind in kinds.items() if kind == COSINE]
    if cosines and len(cosines) < len(tables):
        raise ValueError(f"'{cosines[0]}' holds cosines of a CLAP, other tables ratings: score all systems with one model")


def _compare(files: dict[str, ScoreFile], resamples: int, seed: int) -> Comparison:
    if resamples < 1:
        raise ValueError(f"the bootstrap needs at least one resample, got {resamples}")
    paired_by, scores = read_paired(files)
    prompts = scores.shape[1]
    if prompts < 2:
        raise ValueError("a comparison needs at least 2 prompts")
    draws = bootstrap_means(scores, resamples, seed)
    order = np.argsort(-scores.mean(axis=1), kind="stable")
    names = [list(files)[index] for index in order]
    scores, draws = scores[order], draws[order]
    systems = [System(name, float(row.mean()), *interval(drawn)) for name, row, drawn in zip(names, scores, draws, strict=True)]
    couples = list(combinations(range(len(names)), 2))
    tests = [paired_test(scores[a], scores[b], draws[a] - draws[b]) for a, b in couples]
    p_t_tests, p_bootstraps = holm([test.p_t_test for test in tests]), holm([test.p_bootstrap for test in tests])
    pairs = [
        SystemPair(names[a], names[b], test, *p_values)
        for (a, b), test, *p_values in zip(couples, tests, p_t_tests, p_bootstraps, strict=True)
    ]
    return Comparison(prompts, paired_by, systems, pairs)


# --- Tables --------------------------------------------------------------------------------------------------------------


def tables_of(paths: Sequence[Path], least: int = 2) -> list[Path]:
    """Files and folders -> tables; rejected rows that `xacle score` left in a folder are no table of scores."""
    tables = []
    for path in paths:
        found = [path]
        if not path.exists():
            raise FileNotFoundError(f"no table at '{path}'")
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in TABLE_SUFFIXES)
            found = [file for file in found if not file.name.endswith(REJECTED_SUFFIX)]
        tables += found
    check_distinct(tables)
    if len(tables) < least:
        raise ValueError(f"a comparison needs at least two tables (.csv, .jsonl), got {len(tables)}")
    return tables


def names_of(tables: Sequence[Path]) -> list[str]:
    """What to call the systems: the files' names without suffix, with as many folders as make them differ."""
    parts = [table.resolve().with_suffix("").parts for table in tables]
    for depth in range(1, max(map(len, parts))):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(table) for table in tables]  # a.csv beside a.jsonl


def read_paired(systems: dict[str, ScoreFile]) -> tuple[str, np.ndarray]:
    """Tables of scores, by the systems' names -> what they are paired by, and the scores `[systems, prompts]`.

    By caption, if all tables have captions and none repeats one: the files of different systems may then be called
    differently. Else by file name (and caption, where clips have several).
    """
    files = list(systems.values())
    by_caption = [_scores_by_caption(file) for file in files]
    if None not in by_caption:
        paired_by, columns = "caption (text)", by_caption
    else:
        by_text = pairs_by_text(files)
        columns = [file.predictions(by_text) for file in files]
        paired_by = "file name and caption" if by_text else "file name (wav_file_name)"
    prompts = list(dict.fromkeys(prompt for scores in columns for prompt in scores))
    _check_paired(systems, columns, prompts, paired_by)
    return paired_by, np.array([[scores[prompt] for prompt in prompts] for scores in columns])


def _scores_by_caption(file: ScoreFile) -> dict[str, float] | None:
    """`{caption: score}`; `None` if rows lack a caption or share one."""
    score_column = column_of(file.rows, PREDICTION_COLUMNS, file.path)
    scores = {}
    for line, row, _ in file.keys(by_text=False):
        text = file.text(row)
        if not isinstance(text, str) or not text.strip() or text in scores:
            return None
        scores[text] = number_of(row, score_column, file.path, line)
    return scores


def _check_paired(
    systems: dict[str, ScoreFile], columns: list[dict[str | PairKey, float]], prompts: list[str | PairKey], paired_by: str
) -> None:
    lines = []
    several_files = len({file.path for file in systems.values()}) > 1
    for (name, file), scores in zip(systems.items(), columns, strict=True):
        table = file.path if several_files else name
        missing = [prompt for prompt in prompts if prompt not in scores]
        if missing:
            lines.append(f"'{table}' lacks {len(missing)} of {len(prompts)}:")
            lines += [f"  {prompt}" for prompt in missing[:MAX_LISTED]]
        if len(missing) > MAX_LISTED:
            lines.append(f"  ... and {len(missing) - MAX_LISTED} more")
    if lines:
        advice = "all systems must score the same prompts"
        if not paired_by.startswith("caption"):
            advice += (
                "; files that are called differently are paired by a column text, which `xacle score --with-text` writes, if "
                "each caption occurs once"
            )
        raise ValueError("\n".join([f"rows cannot be paired by {paired_by}", *lines, advice]))


# --- Results -------------------------------------------------------------------------------------------------------------


def check_comparison_output(output: Path | None, paths: Sequence[Path]) -> None:
    """Like [`check_output`]; also refuses a table in a folder that is compared, which would be one of its systems next time.

    Args:
        paths: What is compared, see [`compare`].
    """
    check_output(output, tables_of(paths, least=1), (".json", ".csv"))
    folders = [path.resolve() for path in paths if path.is_dir()]
    if output is not None and output.suffix.lower() == ".csv" and output.resolve().parent in folders:
        raise ValueError(f"'{output}' would be one of the folder's tables the next time; choose another output")


def write_comparison(output: Path, comparison: Comparison) -> None:
    """Write everything as JSON, or the pairs of systems as CSV, a row a pair."""
    if output.suffix.lower() == ".json":
        _write_json(output, asdict(comparison))
        return
    rows = _pair_rows(comparison)
    write_rows(output, list(rows[0]), (row.values() for row in rows))


def write_comparisons(output: Path, comparisons: dict[str, Comparison], by: str) -> None:
    """[`write_comparison`] of what [`compare_each`] returns: by value in JSON; in CSV, the value is the first column."""
    if output.suffix.lower() == ".json":
        _write_json(output, {value: asdict(comparison) for value, comparison in comparisons.items()})
        return
    rows = [{by: value} | row for value, comparison in comparisons.items() for row in _pair_rows(comparison)]
    write_rows(output, list(rows[0]) if rows else [by], (row.values() for row in rows))


def _write_json(output: Path, content: dict) -> None:
    with complete_file(output) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _pair_rows(comparison: Comparison) -> list[dict]:
    means = {system.name: system.mean for system in comparison.systems}
    rows = []
    for pair in comparison.pairs:
        row = {"first": pair.first, "second": pair.second, "mean_first": means[pair.first], "mean_second": means[pair.second]}
        row |= asdict(pair.test)
        rows.append(row | {"p_t_test_holm": pair.p_t_test_holm, "p_bootstrap_holm": pair.p_bootstrap_holm})
    return rows


def comparison_plot(output: Path, comparison: Comparison) -> None:
    """Mean scores, and differences of pairs, with their 95 % intervals (png, pdf, svg). Needs matplotlib."""
    from matplotlib.figure import Figure

    systems, pairs = comparison.systems[::-1], comparison.pairs[::-1]
    figure = Figure(figsize=(11, 1.6 + 0.35 * max(len(systems), len(pairs))), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, system in enumerate(systems):
        left.plot([system.low, system.high], [place, place], color="C0", linewidth=2)
        left.plot(system.mean, place, "o", color="C0")
    left.set_yticks(range(len(systems)), [system.name for system in systems])
    left.set_xlabel("mean score, 95 % interval")
    left.set_title(f"{comparison.prompts} prompts")
    for place, pair in enumerate(pairs):
        color = "C2" if pair.p_bootstrap_holm < SIGNIFICANT else "0.6"
        right.plot([pair.test.low, pair.test.high], [place, place], color=color, linewidth=2)
        right.plot(pair.test.difference, place, "o", color=color)
    right.axvline(0, color="0.3", linewidth=1)
    right.set_yticks(range(len(pairs)), [f"{pair.first} - {pair.second}" for pair in pairs])
    right.set_xlabel("difference of mean scores, 95 % interval")
    right.set_title(f"green: corrected bootstrap p < {SIGNIFICANT}")
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
        axes.margins(y=0.3 / max(1, len(systems)))
    save_plot(figure, output)
