"""Time and memory of what is compared, and the tables they end up in."""

import ctypes
import gc
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import transformers

from xacle.scoring.malloc import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


@dataclass
class Measured:
    """The least seconds of several runs, on the clock and of the process' CPU time, and what the last run returned."""

    wall: float
    cpu: float
    result: object


def interleaved(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, Measured]:
    """Run the variants in turn, `repeats` rounds of them: what else the machine does then falls on all alike."""
    measured: dict[str, Measured] = {}
    for _ in range(repeats):
        for name, run in variants.items():
            now = _measure(run)
            before = measured.get(name, now)
            measured[name] = Measured(min(now.wall, before.wall), min(now.cpu, before.cpu), now.result)
    return measured


def _measure(run: Callable[[], object]) -> Measured:
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Measured(time.perf_counter() - wall, time.process_time() - cpu, result)


def default_malloc() -> None:
    """Undo `keep_freed_memory`: glibc's thresholds as they are once it has adapted them to a program with large tensors."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
    mallopt(M_TRIM_THRESHOLD, 64 * 2**20)


def peak_memory() -> float:
    """The most memory this process ever had, in GB (10^9 bytes). Not `ru_maxrss`, which starts at the parent's."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024 / 1e9


def in_fresh_process(function: Callable, *args):
    """`function(*args)` in a process of its own, for its peak memory and its start. Both must be picklable."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


# --- Reports -------------------------------------------------------------------------------------------------------------


def machine() -> str:
    """What it was measured on and when, in one line."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (name := re.search(r"model name\s*: (.+)", info.read_text())):
        cpu = name[1].strip()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}; {versions}; {date.today()}"


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A markdown table; floats with three digits that count."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_formatted, line)) + " |" for line in lines)


def _formatted(value) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def target(what: str, reached: float, wanted: float, unit: str = "", at_most: bool = False) -> str:
    """A line that says whether a target was reached."""
    good = reached <= wanted if at_most else reached >= wanted
    bound = "at most" if at_most else "at least"
    return f"* Target, {what} {bound} {wanted:g}{unit}: {_formatted(reached)}{unit}, **{'reached' if good else 'missed'}**"


def replace_section(file: Path, name: str, text: str) -> None:
    """Put `text` between the file's markers of that name, or at its end; the rest of the file stays as it is."""
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    old = file.read_text(encoding="utf-8") if file.exists() else ""
    block = f"{begin}\n{text.strip()}\n{end}"
    if begin in old:
        new = old[: old.index(begin)] + block + old[old.index(end) + len(end) :]
    else:
        new = f"{old.rstrip()}\n\n{block}\n".lstrip()
    file.write_text(new, encoding="utf-8")


def plot_ratios(file: Path, ratios: dict[str, float]) -> Path:
    """Bars of how many times the CPU time the baseline takes."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(ratios) + 1), layout="constrained")
    axes.bar_label(axes.barh(list(ratios), list(ratios.values())), fmt="%.2f", padding=3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xlabel="CPU time of the baseline / ours", xmargin=0.1)
    axes.invert_yaxis()
    figure.savefig(file)
    pyplot.close(figure)
    return file
