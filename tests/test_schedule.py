"""Steps of the demo run in processes of one thread, two at a time, in the order of their dependencies."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from xacle.demo.schedule import Step, run_steps, seconds_passed


@dataclass
class Folder:
    """What `run_steps` needs of a recipe."""

    out: Path

    def folder(self, name: str) -> Path:
        return self.out / name

    def step_record(self, name: str) -> dict | None:
        file = self.out / f"steps/{name}.json"
        return json.loads(file.read_text()) if file.is_file() else None


def work(recipe, folder: Path) -> dict:
    folder.mkdir()
    time.sleep(0.3)
    print("worked")
    return {"process": os.getpid(), "threads": torch.get_num_threads(), "variable": os.environ["OMP_NUM_THREADS"]}


def fail(recipe, folder: Path) -> None:
    raise ValueError("no sound in it")


def interrupt() -> None:
    raise KeyboardInterrupt


def test_steps_run_two_at_a_time_with_one_thread_each_after_those_they_need(tmp_path):
    steps = [Step(name, name, work, 1) for name in "abc"] + [Step("last", "last", work, 1, after=("a", "c"))]
    recipe, threads = Folder(tmp_path), torch.get_num_threads()
    run_steps(recipe, steps)
    records = {step.name: recipe.step_record(step.name) for step in steps}
    started = {name: record["started"] for name, record in records.items()}
    ended = {name: started[name] + record["seconds"] for name, record in records.items()}
    assert started["last"] > max(ended["a"], ended["c"])
    assert started["b"] < ended["a"] and started["c"] > min(ended["a"], ended["b"])
    results = [record["result"] for record in records.values()]
    assert {(result["threads"], result["variable"]) for result in results} == {(1, "1")}
    assert len({result["process"] for result in results} | {os.getpid()}) == 5
    assert (tmp_path / "steps/a.log").read_text() == "worked\n"
    assert torch.get_num_threads() == threads  # here, nothing has changed
    assert seconds_passed(list(records.values())) < sum(record["seconds"] for record in records.values())


def test_finished_steps_are_skipped_and_a_step_that_failed_is_explained(tmp_path, capfd):
    steps = [Step("good", "Good", work, 1), Step("bad", "Bad", fail, 1, after=("good",))]
    with pytest.raises(RuntimeError, match=r"step 'bad' failed:(.|\n)*ValueError: no sound in it"):
        run_steps(Folder(tmp_path), steps)
    run_steps(Folder(tmp_path), [steps[0], Step("bad", "Bad", work, 1, after=("good",))])
    assert "[1/2] Good: finished before" in capfd.readouterr().out


def test_an_interruption_ends_the_steps_that_are_running(tmp_path):
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_steps(Folder(tmp_path), [Step("long", "long", sleep, 60)], news=interrupt)
    assert time.monotonic() - began < 20 and not (tmp_path / "steps/long.json").exists()


def sleep(recipe, folder: Path) -> None:
    time.sleep(60)


def test_pauses_between_runs_do_not_count_as_time():
    records = [{"started": 0, "seconds": 10}, {"started": 5, "seconds": 10}, {"started": 100, "seconds": 1}]
    assert seconds_passed(records) == 16
