"""The benchmarks run end to end, on a tiny model, and find no difference between what they compare."""

import re
import subprocess
import sys
from pathlib import Path

from xacle.benchmarks.measure import replace_section, table, target

ROOT = Path(__file__).parents[1]


def test_the_quick_run_works_and_ours_and_the_baseline_agree(tmp_path):
    results = tmp_path / "RESULTS.md"
    results.write_text("# Measurements\n\nKept.\n")
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--output", str(results)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]  # it fails if results differ
    text = results.read_text()
    assert text.startswith("# Measurements\n\nKept.\n\n<!-- begin: scoring -->")
    for name in ("scoring", "captions", "floor", "memory", "rows", "training", "accelerator"):
        section = text.partition(f"<!-- begin: {name} -->")[2].partition(f"<!-- end: {name} -->")[0]
        assert "### " in section and section.count("\n| ") >= 3 and " cores, " in section
    assert (tmp_path / "speed.svg").stat().st_size > 1000
    differences = [float(line.split("|")[-2]) for line in text.splitlines() if re.match(r"\| (\d+ \| \d|[123], )", line)]
    assert len(differences) == 2 + 3 + 9 and max(differences) < 1e-4


def test_a_section_is_replaced_and_the_rest_stays(tmp_path):
    file = tmp_path / "RESULTS.md"
    file.write_text("before\n\n<!-- begin: a -->\nold\n<!-- end: a -->\n\nafter\n")
    replace_section(file, "a", "new\n")
    replace_section(file, "b", "more")
    assert file.read_text() == (
        "before\n\n<!-- begin: a -->\nnew\n<!-- end: a -->\n\nafter\n\n<!-- begin: b -->\nmore\n<!-- end: b -->\n"
    )


def test_tables_and_targets_are_readable():
    assert table(["", "s"], [["a", 1234.5], ["b", 0.01234]]).splitlines()[2:] == ["| a | 1,234 |", "| b | 0.0123 |"]
    assert target("speed", 2.5, 2.2, "x") == "* Target, speed at least 2.2x: 2.5x, **reached**"
    assert target("load", 6.0, 5, " s", at_most=True).endswith("6 s, **missed**")
