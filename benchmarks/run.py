"""How fast is it, against the plain way and against what the machine can do at best?

    python -m benchmarks.run            # the paper's sizes, random weights; ten minutes on 2 cores, 16 GB of memory
    python -m benchmarks.run --quick    # a tiny model, under a minute: does everything run?

Both sides of a comparison share their weights and take turns in one process: trust the ratios. The full run writes each
section into RESULTS.md, with the machine's name, and draws the ratios (which takes matplotlib); `--sections` runs some of them.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers.utils import logging

from xacle.benchmarks.bench import build
from xacle.benchmarks.gpu import accelerator
from xacle.benchmarks.measure import machine, plot_ratios, replace_section
from xacle.benchmarks.scoring import captions_per_clip, floor, memory, rows, scoring
from xacle.benchmarks.training import training

SECTIONS = {
    "scoring": ("Scoring by batch size", scoring),
    "captions": ("Several captions for one sound", captions_per_clip),
    "floor": ("One pair, and the least it can cost", floor),
    "memory": ("Memory and start", memory),
    "rows": ("Large tables", rows),
    "training": ("Training", training),
    "accelerator": ("On a GPU", accelerator),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model: checks that everything runs, measures nothing")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, help="only these; all that the machine allows by default")
    parser.add_argument("--batch-sizes", nargs="+", type=int, help="of the scoring section; 1 8 16 by default")
    parser.add_argument("--full-rows", action="store_true", help="also a table of a million rows")
    parser.add_argument("--output", type=Path, help="file to write the sections into (full: RESULTS.md, quick: none)")
    options = parser.parse_args(argv)
    logging.disable_progress_bar()
    os.environ["TQDM_DISABLE"] = "1"  # of the processes that are started
    cuda, quick = torch.cuda.is_available(), options.quick
    names = options.sections or [name for name in SECTIONS if name != "accelerator" or cuda or quick]
    batch_sizes = tuple(options.batch_sizes or ((1, 4) if quick else (1, 8, 16)))
    counts = (1_000,) if quick else (1_000, 10_000, 100_000, *([1_000_000] if options.full_rows else []))
    output = options.output or (None if quick else Path(__file__).parent / "RESULTS.md")
    with tempfile.TemporaryDirectory() as folder:
        bench = build(Path(folder), not quick, batch_sizes, counts)
        for name in names:
            title, measure = SECTIONS[name]
            start = time.perf_counter()
            text = f"### {title}\n\n{machine()}.\n\n{measure(bench)}"
            print(f"{text}\n\n({time.perf_counter() - start:.0f} s)\n", flush=True)
            if output is not None:
                replace_section(output, name, text)
    if output is not None and not options.sections:
        picture = plot_ratios(output.with_name("speed.svg"), bench.ratios)
        replace_section(output, "plot", f"![CPU time of the baseline over ours]({picture.name})")
    if bench.failures:
        sys.exit("\n".join(bench.failures))


if __name__ == "__main__":
    main()
