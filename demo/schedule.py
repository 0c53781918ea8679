"""Steps that depend on each other, each in a process of its own with one thread, two at a time.

Models this small gain nothing from a second thread, and threads that wait for each other make a step many times slower on a
busy machine. Two processes of one thread use two cores without ever waiting, however many cores there are.
"""

import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from tqdm import tqdm

PROCESSES = 2
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SHOWN_LINES = 20  # of the log of a step that failed


@dataclass(frozen=True)
class Step:
    """
    A step, by the name of its folder and its record.

    Args:
        run: Called with the recipe and the step's folder; returns what is recorded as its result.
        seconds: What it took once, in full and on one idle core. Only for the progress bar.
        after: Steps whose results it needs.
        curve: Whether the report shows its training curves.
    """

    name: str
    title: str
    run: Callable
    seconds: float
    after: tuple[str, ...] = ()
    curve: bool = False


def run_steps(recipe, steps: Sequence[Step], news: Callable[[], str | None] = lambda: None) -> None:
    """
    Run the steps that have no record yet, in an order that their dependencies allow, and show how far they are.

    A step's output goes to `steps/<name>.log`; its start, seconds (passed, and of CPU) and result to `steps/<name>.json`.

    Args:
        recipe: Has `out`, `folder(step name)` and `step_record(step name)`; it is pickled.
        news: Called every second; what it returns is shown.

    Raises:
        RuntimeError: if a step fails, with the end of its log. The other one is stopped.
    """
    number = {step.name: f"[{index}/{len(steps)}]" for index, step in enumerate(steps, start=1)}
    waiting = [step for step in steps if recipe.step_record(step.name) is None]
    done = {step.name for step in steps} - {step.name for step in waiting}
    for step in steps:
        if step.name in done:
            print(f"{number[step.name]} {step.title}: finished before", flush=True)
    running: dict[str, _Running] = {}
    with _one_thread_each(), _Progress(steps, done) as progress:
        context = _context()
        try:
            while waiting or running:
                for step in [step for step in waiting if done.issuperset(step.after)][: PROCESSES - len(running)]:
                    waiting.remove(step)
                    running[step.name] = _Running.start(context, recipe, step)
                    progress.write(f"{number[step.name]} {step.title} ...")
                wait([started.process.sentinel for started in running.values()], timeout=1)
                for name in [name for name, started in running.items() if started.process.exitcode is not None]:
                    started = running.pop(name)
                    if recipe.step_record(name) is None:
                        raise RuntimeError(f"step '{name}' failed:\n{_end_of(log_of(recipe, name))}")
                    done.add(name)
                    progress.write(f"{number[name]} {started.step.title}: {started.seconds:.0f} s")
                if text := news():
                    progress.write(text)
                progress.show(done, running)
        finally:
            for started in running.values():
                started.process.terminate()
            for started in running.values():
                started.process.join()


def log_of(recipe, name: str) -> Path:
    return recipe.out / "steps" / f"{name}.log"


def _end_of(log: Path) -> str:
    """The last lines of a log; of a progress bar's line, what it showed last."""
    lines = [line.rpartition("\r")[2] for line in log.read_text(errors="replace").split("\n")] if log.is_file() else []
    return "\n".join(lines[-SHOWN_LINES:])


def seconds_passed(records: Sequence[dict]) -> float:
    """How long the steps took together, by their records: two at a time count once, pauses between two runs do not count."""
    passed, end = 0.0, 0.0
    for record in sorted(records, key=lambda record: record["started"]):
        finished = record["started"] + record["seconds"]
        passed += max(0.0, finished - max(end, record["started"]))
        end = max(end, finished)
    return passed


# ---- One process. ----


@dataclass
class _Running:
    step: Step
    process: BaseProcess
    started: float

    @classmethod
    def start(cls, context, recipe, step: Step) -> "_Running":
        process = context.Process(target=_run_step, args=(recipe, step), daemon=True)
        process.start()
        return cls(step, process, time.monotonic())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


def _run_step(recipe, step: Step) -> None:
    """Run one step in this process and leave its record."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    record = recipe.out / "steps" / f"{step.name}.json"
    record.parent.mkdir(exist_ok=True)
    with log_of(recipe, step.name).open("w") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    shutil.rmtree(recipe.folder(step.name), ignore_errors=True)  # of an interrupted run
    started, start = time.time(), time.monotonic()
    result = step.run(recipe, recipe.folder(step.name))
    seconds = {"seconds": time.monotonic() - start, "cpu_seconds": time.process_time()}
    finished = {"started": started, **seconds, "result": result}
    part = record.with_suffix(".part")
    part.write_text(json.dumps(finished, indent=1) + "\n")
    part.replace(record)


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, by a kill for example, which could not tell it."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _context():
    """Processes that start in a moment: copies of a server that has imported the recipe, where there are such servers."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["xacle.demo.recipe"])
    return context


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started in this block compute with one thread: the libraries read these variables when they are loaded."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# ---- Progress. ----


class _Progress:
    """A bar over the expected seconds of all steps, from which tqdm estimates the time that is left."""

    def __init__(self, steps: Sequence[Step], done: set[str]):
        self.expected = {step.name: step.seconds for step in steps}
        first = sum(self.expected[name] for name in done)
        shape = "{percentage:3.0f}% {bar:20} {elapsed} passed, about {remaining} left: {desc}"
        self.bar = tqdm(total=sum(self.expected.values()), initial=first, bar_format=shape, mininterval=1, smoothing=0)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def write(self, line: str) -> None:
        self.bar.write(line)

    def show(self, done: set[str], running: dict[str, _Running]) -> None:
        """Of a running step, as much counts as its seconds say, up to 95 %."""
        reached = sum(self.expected[name] for name in done)
        reached += sum(min(started.seconds, 0.95 * started.step.seconds) for started in running.values())
        self.bar.set_description_str(" and ".join(running), refresh=False)
        self.bar.n = max(self.bar.n, reached)
        self.bar.refresh()
