"""How fast `xacle select` chooses among many rows, and how much memory it takes.

`python -m benchmarks.select --rows 10000000`

The table is generated: every clip has three captions, every caption four clips, scores are uniform. Each selection runs in a
process of its own; the memory is its peak, above that of a process that has only imported the module. The table and the
temporary files need some 4 GB for ten million rows, in `--folder`.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from xacle.benchmarks.measure import in_fresh_process, machine, peak_memory, replace_section, table
from xacle.core.tables import write_rows
from xacle.scoring.selection import SelectionOptions, select

SELECTIONS = {
    "--keep 0.3": SelectionOptions(keep=0.3),
    "--min-score 2 --top 1 --by wav_file_name": SelectionOptions(min_score=2.0, top=1, by="wav_file_name"),
    "--pairs": SelectionOptions(),
}


def generate(file: Path, rows: int) -> None:
    """Write `wav_file_name,text,pred_score`."""
    rng = np.random.default_rng(0)
    captions = rng.permutation(rows)  # a caption's clips lie far apart
    scores = rng.uniform(0, 10, rows).astype(np.float32)
    lines = (
        (f"clip_{row // 3:08d}.wav", f"A dog barks, and number {captions[row] // 4} of many bells rings far away", scores[row])
        for row in range(rows)
    )
    write_rows(file, ["wav_file_name", "text", "pred_score"], lines)


def imported() -> float:
    return peak_memory()


def measure(name: str, scores: Path, folder: Path) -> list:
    """Cells of a row: the options, rows kept (or pairs), seconds, rows a second, peak memory in MB."""
    start = time.perf_counter()
    output = folder / "selected.csv"
    where = {"pairs": output} if name == "--pairs" else {"output": output}
    report = select(scores, options=SELECTIONS[name], **where)
    seconds = time.perf_counter() - start
    made = report.kept if report.pairs is None else report.pairs
    return [f"`{name}`", f"{made:,}", seconds, report.rows / seconds, peak_memory() * 1000]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="for the table and temporary files; the system's by default")
    parser.add_argument("--output", type=Path, help="write a section `select` into this file of results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        os.environ["TMPDIR"] = folder
        scores = Path(folder) / "scores.csv"
        generate(scores, options.rows)
        size, start = scores.stat().st_size / 1e6, in_fresh_process(imported) * 1000
        rows = [in_fresh_process(measure, name, scores, Path(folder)) for name in SELECTIONS]
    text = table(["`xacle select`", "rows written", "s", "rows/s", "peak memory, MB"], rows)
    heading = f"### Selecting\n\n`python -m benchmarks.select --rows {options.rows}`: {machine()}. "
    text = f"{heading}A CSV of {options.rows:,} rows, {size:,.0f} MB; the imports alone take {start:,.0f} MB.\n\n{text}"
    print(text)
    if options.output is not None:
        replace_section(options.output, "select", text)


if __name__ == "__main__":
    main()
