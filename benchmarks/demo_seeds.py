"""Test SRCC of several runs of the demo side by side: `python -m benchmarks.demo_seeds OUT [OUT ...]`

Each OUT is a folder that `xacle demo --seed N --out OUT` wrote.
"""

import json
import math
import statistics
import sys
from pathlib import Path


def print_seeds(folders: list[Path]) -> None:
    runs = [json.loads((folder / "results.json").read_text()) for folder in folders]
    print(f"| test SRCC | {' | '.join('seed {}'.format(run['seed']) for run in runs)} | mean | spread |")
    print("|---|" + "---:|" * (len(runs) + 2))
    of_seeds = {}
    for rows in zip(*(run["table"] for run in runs), strict=True):
        of_seeds[rows[0]["key"]] = values = [row["test"]["value"] for row in rows]
        cells = [*values, statistics.mean(values), max(values) - min(values)]
        print(f"| {rows[0]['configuration']} | {' | '.join(f'{value:.3f}' for value in cells)} |")
    ceilings = [run["corpus"]["test"].get("noise_ceiling_srcc", math.nan) for run in runs]
    print(f"| noise ceiling | {' | '.join(f'{value:.3f}' for value in [*ceilings, statistics.mean(ceilings)])} | |")
    print(f"| minutes | {' | '.join('{:.1f}'.format(run['seconds'] / 60) for run in runs)} | | |")
    members = [statistics.mean(pair) for pair in zip(of_seeds["stage123"], of_seeds["stage23"], strict=True)]
    margins = [full - only for full, only in zip(of_seeds["stage123"], of_seeds["stage3"], strict=True)]
    gains = [both - mean for both, mean in zip(of_seeds["ensemble"], members, strict=True)]
    print(f"\nfull pipeline minus stage 3 only: {', '.join(f'{value:+.3f}' for value in margins)}")
    print(f"ensemble minus the mean of its members: {', '.join(f'{value:+.3f}' for value in gains)}")


if __name__ == "__main__":
    print_seeds([Path(folder) for folder in sys.argv[1:]])
