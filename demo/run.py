"""`xacle demo`: run the recipe's steps, skip those that are finished, and write results and report."""

import json
import os
import platform
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from xacle.core.tables import stream_rows
from xacle.demo.recipe import STEPS, Recipe
from xacle.demo.report import format_table, write_report
from xacle.demo.schedule import Step, run_steps, seconds_passed
from xacle.demo.settings import Settings
from xacle.scoring.scorer import Scorer

SHOWN_PAIRS = 8


def run_demo(out: Path, settings: Settings) -> dict:
    """
    Run the steps that are not finished yet, and write `results.json`, `table.md` and `report.html`.

    Args:
        out: A new or empty folder, or that of an earlier demo with the same settings.
        settings: The same settings give the same table on the same machine.

    Returns:
        What `results.json` holds.

    Raises:
        FileExistsError: if the folder holds something else.
        FileNotFoundError, ValueError: if the corpus or the encoder given cannot be used.
    """
    settings.check()
    claim(out, settings.to_json())
    recipe = Recipe(out, settings)
    run_steps(recipe, STEPS, news=first_ratings(recipe))
    shutil.rmtree(recipe.cache, ignore_errors=True)
    return report(recipe)


def first_ratings(recipe: Recipe) -> Callable[[], str | None]:
    """Something to see at once: a function that returns a few rated pairs, once, when they are there."""
    shown = recipe.step_record("corpus") is not None

    def news() -> str | None:
        nonlocal shown
        if shown or not recipe.corpus.table("captions").is_file():  # which is written after them
            return None
        shown = True
        pairs = recipe.corpus.pairs("train")[:SHOWN_PAIRS]
        lines = [f"    {pair.rating:5.2f}  {pair.wav_file_name}  {pair.text}" for pair in pairs]
        return "\n".join([f"    rated pairs, in {recipe.corpus.audio_dir('train')}:", *lines])

    return news


def claim(out: Path, settings: dict) -> None:
    """Mark a folder as this demo's, or raise `FileExistsError` if it belongs to something else."""
    marker = out / "demo.json"
    if marker.is_file():
        earlier = json.loads(marker.read_text())
        if earlier != settings:
            runs = f"the demo run of {command_of(earlier)}, not of {command_of(settings)}"
            raise FileExistsError(f"'{out}' holds {runs}; choose another --out, or delete it")
        return
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"'{out}' is a file; --out names a folder")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"'{out}' is not empty and no earlier demo's; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(settings) + "\n")


def command_of(settings: dict) -> str:
    """The command that makes such a run."""
    words = ["xacle demo"]
    if settings["quick"]:
        words.append("--quick")
    words += [f"--{name.replace('_', '-')} {value}" for name, value in settings.items() if name != "quick"]
    return f"`{' '.join(words)}`"


def report(recipe: Recipe) -> dict:
    """`results.json`, `table.md` and `report.html`; returns what the first holds."""
    done = {step.name: recipe.step_record(step.name) for step in STEPS}
    scores = [float(row["pred_score"]) for _, row in stream_rows(recipe.folder("results") / "test_stage123.csv")]
    run = {
        "seed": recipe.seed,
        "quick": recipe.settings.quick,
        "seconds": seconds_passed(list(done.values())),
        "machine": machine(),
        "steps": [{"name": step.name, "title": step.title, "seconds": done[step.name]["seconds"]} for step in STEPS],
        "parameters": sum(p.numel() for p in Scorer.from_pretrained(recipe.folder("stage123"), "cpu").model.parameters()),
        "corpus": done["corpus"]["result"],
        "pseudo_labels": done["pseudo_labels"]["result"],
        **done["results"]["result"],
        "model": "stage123",
        "curves": {step.name: curve(recipe, step) for step in STEPS if step.curve},
        "predictions": [
            {
                "wav_file_name": pair.wav_file_name,
                "text": pair.text,
                "average_score": pair.rating,
                "pred_score": score,
            }
            for pair, score in zip(recipe.corpus.pairs("test"), scores, strict=True)
        ],
    }
    (recipe.out / "results.json").write_text(json.dumps(run, indent=1) + "\n")
    (recipe.out / "table.md").write_text(format_table(run))
    write_report(run, recipe.corpus.folder, recipe.out / "report.html")
    return run


def curve(recipe: Recipe, step: Step) -> dict:
    log = json.loads((recipe.folder(step.name) / "log_history.json").read_text())
    loss = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    srcc = {entry["epoch"]: entry["eval_SRCC"] for entry in log if "eval_SRCC" in entry}
    return {"title": step.title, "loss": loss, "srcc": list(srcc.items())}


def machine() -> dict:
    """What the numbers were computed with."""
    info = Path("/proc/cpuinfo")  # of Linux
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }
