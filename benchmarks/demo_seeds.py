"""Test SRCC of several runs of the demo side by side, and differences of systems.

`python -m benchmarks.demo_seeds OUT [OUT ...]`, each a folder that `xacle demo --seed N --out OUT` wrote.

The interval of a difference is that of the mean over seeds: seeds are drawn with replacement, and of each the captions of its
test pairs, with all their sounds. Both systems are compared on the same ones.
"""

import csv
import json
import math
import statistics
import sys
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

DIFFERENCES = (  # the mean of the first systems minus the mean of the second
    (("stage123",), ("stage12",)),
    (("stage123",), ("teacher",)),
    (("stage123",), ("stage3",)),
    (("stage123",), ("stage23",)),
    (("stage12",), ("stage1",)),
    (("ensemble",), ("stage123", "stage23")),
)
RESAMPLES = 1000


class TestScores:
    """The test ratings of one run and each system's scores, and the rows of each caption."""

    __test__ = False  # for pytest

    def __init__(self, folder: Path):
        run = json.loads((folder / "results.json").read_text())
        self.seed, self.table, self.corpus, self.seconds = run["seed"], run["table"], run["corpus"]["test"], run["seconds"]
        self.ratings = np.array([row["average_score"] for row in run["predictions"]])
        self.scores = {row["key"]: read_scores(folder / f"results/test_{row['key']}.csv") for row in self.table}
        rows_of: dict[str, list[int]] = {}
        for number, row in enumerate(run["predictions"]):
            rows_of.setdefault(row["text"], []).append(number)
        self.captions = [np.array(rows) for rows in rows_of.values()]

    def resampled_rows(self, rng: np.random.Generator) -> np.ndarray:
        return np.concatenate([self.captions[number] for number in rng.integers(len(self.captions), size=len(self.captions))])

    def srcc(self, rows: np.ndarray) -> dict[str, float]:
        """The SRCC of each system over some of the pairs."""
        ratings = rankdata(self.ratings[rows])
        return {key: float(np.corrcoef(rankdata(scores[rows]), ratings)[0, 1]) for key, scores in self.scores.items()}


def read_scores(file: Path) -> np.ndarray:
    with file.open(newline="") as opened:
        return np.array([float(row["pred_score"]) for row in csv.DictReader(opened)])


def difference(srcc: dict[str, float], first: tuple[str, ...], second: tuple[str, ...]) -> float:
    return statistics.mean(srcc[key] for key in first) - statistics.mean(srcc[key] for key in second)


def print_table(runs: list[TestScores]) -> None:
    print(f"| test SRCC | {' | '.join(f'seed {run.seed}' for run in runs)} | mean | spread |")
    print("|---|" + "---:|" * (len(runs) + 2))
    for rows in zip(*(run.table for run in runs), strict=True):
        values = [row["test"]["value"] for row in rows]
        cells = [*values, statistics.mean(values), max(values) - min(values)]
        print(f"| {rows[0]['configuration']} | {' | '.join(f'{value:.3f}' for value in cells)} |")
    ceilings = [run.corpus.get("noise_ceiling_srcc", math.nan) for run in runs]
    print(f"| noise ceiling | {' | '.join(f'{value:.3f}' for value in [*ceilings, statistics.mean(ceilings)])} | |")
    print(f"| minutes | {' | '.join(f'{run.seconds / 60:.1f}' for run in runs)} | | |")


def print_differences(runs: list[TestScores]) -> None:
    rng = np.random.default_rng(0)
    resampled = [
        [runs[number].srcc(runs[number].resampled_rows(rng)) for number in rng.integers(len(runs), size=len(runs))]
        for _ in range(RESAMPLES)
    ]
    measured = [run.srcc(np.arange(len(run.ratings))) for run in runs]
    name_of = {row["key"]: row["configuration"] for row in runs[0].table}
    print(f"| difference of test SRCC | {' | '.join(f'seed {run.seed}' for run in runs)} | mean | 95 % interval |")
    print("|---|" + "---:|" * (len(runs) + 2))
    for first, second in DIFFERENCES:
        values = [difference(srcc, first, second) for srcc in measured]
        means = [statistics.mean(difference(srcc, first, second) for srcc in several) for several in resampled]
        low, high = np.percentile(means, [2.5, 97.5])
        name = f"{name_of[first[0]]} - {' and '.join(name_of[key] for key in second)}"
        cells = [f"{value:+.3f}" for value in [*values, statistics.mean(values)]]
        print(f"| {name} | {' | '.join(cells)} | {low:+.3f} to {high:+.3f} |")


def print_seeds(folders: list[Path]) -> None:
    runs = [TestScores(folder) for folder in folders]
    print_table(runs)
    print()
    print_differences(runs)


if __name__ == "__main__":
    print_seeds([Path(folder) for folder in sys.argv[1:]])
