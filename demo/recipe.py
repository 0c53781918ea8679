"""`xacle demo`: the paper's Table 2 in miniature, on generated soundscapes with simulated ratings.

The steps are those of the full recipe and call the same code, with small numbers: see `STEPS` and `Recipe`'s methods.
"""

import csv
import gc
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import soundfile as sf
import torch

from xacle.demo.panel import write_corpus
from xacle.demo.parts import save_clap, save_scorer, train_encoder
from xacle.demo.report import format_table, write_report
from xacle.demo.results import BLIND_CAPTION, score_systems
from xacle.scoring.scorer import Scorer
from xacle.soundscapes.scenes import SAMPLES, SAMPLING_RATE
from xacle.train import stage1_captioning, stage2_pseudo_labels, stage3_ratings
from xacle.train.teacher import human_clap
from xacle.train.teacher.pseudo_labels import pseudo_label

RATED = ("train", "validation", "test")
AUDIO_BLIND, CAPTION_BLIND = "_audio_blind", "_caption_blind"  # endings of tables
BATCH_SIZE = 16  # the paper's


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    train: int  # rated pairs
    validation: int
    test: int
    captions: int  # captioned clips
    event_clips: int  # of each kind, for the encoder
    encoder_steps: int
    clap_epochs: int
    teacher_epochs: int
    captioning_epochs: int
    pseudo_label_epochs: int
    rating_epochs: int


FULL = Plan(
    train=1000,
    validation=160,
    test=320,
    captions=3600,
    event_clips=40,
    encoder_steps=2000,
    clap_epochs=8,
    teacher_epochs=3,
    captioning_epochs=4,
    pseudo_label_epochs=3,
    rating_epochs=4,
)
QUICK = Plan(
    train=48,
    validation=32,
    test=32,
    captions=64,
    event_clips=3,
    encoder_steps=40,
    clap_epochs=1,
    teacher_epochs=1,
    captioning_epochs=1,
    pseudo_label_epochs=1,
    rating_epochs=1,
)


class Recipe:
    """
    The steps of the demo. Each method is one step; it writes into a folder of its own and returns what the report needs.

    Args:
        out: Folder for everything.
        plan: How much of everything.
        seed: Of the corpus, the weights and the order of the data.
    """

    def __init__(self, out: Path, plan: Plan, seed: int):
        self.out, self.plan, self.seed = out, plan, seed
        self.corpus, self.tables, self.cache = out / "corpus", out / "tables", out / "cache"

    # ---- What the recipe starts from. ----

    def make_corpus(self, folder: Path) -> dict:
        plan = self.plan
        return write_corpus(folder, self.seed, plan.train, plan.validation, plan.test, plan.captions)

    def make_tables(self, folder: Path) -> None:
        """Tables besides the corpus' own: captions as pairs that match, and ratings with the sound or the caption hidden."""
        folder.mkdir()
        sf.write(folder / "silence.wav", np.zeros(SAMPLES, dtype=np.float32), SAMPLING_RATE)
        matched = [(row["wav_file_name"], row["text"], 10) for row in self.rows("captions")]
        write_rated(folder / "matched.csv", matched)
        for split in RATED:
            rows = [(row["wav_file_name"], row["text"], float(row["average_score"])) for row in self.rows(f"{split}_average")]
            of_text = {}  # the sounds hidden, equal captions are one pair
            for _, text, rating in rows:
                of_text.setdefault(text, []).append(rating)
            silent = [("silence.wav", text, np.mean(ratings)) for text, ratings in of_text.items()]
            write_rated(folder / f"{split}{AUDIO_BLIND}.csv", silent)
            write_rated(folder / f"{split}{CAPTION_BLIND}.csv", [(name, BLIND_CAPTION, rating) for name, _, rating in rows])

    def make_encoder(self, folder: Path) -> dict:
        model, found = train_encoder(self.plan.event_clips, self.plan.encoder_steps, self.seed)
        model.save_pretrained(folder)
        save_scorer(model, self.captions(), self.out / "untrained", self.seed)
        print(f"The encoder finds {found:.0%} of the events in new scenes.")
        return {"events_found": found}

    # ---- The teacher. ----

    def train_clap(self, folder: Path) -> None:
        """CLIP's contrastive loss: the weighted cross-entropy with every rating 10, and nothing else."""
        save_clap(self.captions(), self.out / "untrained_clap", self.seed)
        self.train(
            human_clap.main,
            folder,
            self.out / "untrained_clap",
            train_file=self.tables / "matched.csv",
            audio_dir=self.corpus / "wav/captions",
            mae_weight=0,
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            num_train_epochs=self.plan.clap_epochs,
            max_grad_norm=1.0,
            dataloader_num_workers=1,  # which decodes while this process computes
            feature_cache="none",
        )

    def train_teacher(self, folder: Path) -> None:
        """Human-CLAP."""
        self.train(
            human_clap.main,
            folder,
            self.out / "clap",
            **self.ratings("train"),
            learning_rate=1e-4,
            num_train_epochs=self.plan.teacher_epochs,
            max_grad_norm=1.0,
            feature_cache="none",
        )

    def label(self, folder: Path) -> dict:
        folder.mkdir()
        table, audio_dir = self.corpus / "meta_data/captions.csv", self.corpus / "wav/captions"
        labels = pseudo_label(
            self.out / "teacher", table, folder / "pseudo_labels.csv", audio_dir, seed=self.seed, feature_cache=self.cache
        )
        return {"rows": labels.rows}

    # ---- The stages. ----

    def stage1(self, folder: Path) -> None:
        self.train(
            stage1_captioning.main,
            folder,
            self.out / "untrained",
            validation=False,
            train_file=self.corpus / "meta_data/captions.csv",
            audio_dir=self.corpus / "wav/captions",
            learning_rate=1e-3,
            num_train_epochs=self.plan.captioning_epochs,
        )

    def stage2(self, folder: Path, start: str = "untrained") -> None:
        self.train(
            stage2_pseudo_labels.main,
            folder,
            self.folder(start),
            train_file=self.folder("pseudo_labels") / "pseudo_labels.csv",
            audio_dir=self.corpus / "wav/captions",
            per_device_train_batch_size=2 * BATCH_SIZE,  # so small a model learns more evenly from longer lists
            learning_rate=7e-4,
            num_train_epochs=self.plan.pseudo_label_epochs,
            listnet_temperature=0.2,
        )

    def stage12(self, folder: Path) -> None:
        self.stage2(folder, "stage1")

    def stage3(self, folder: Path, start: str, blind: str = "", **options) -> None:
        self.train(
            stage3_ratings.main,
            folder,
            self.folder(start),
            **self.ratings("train", blind),
            **self.ratings("validation", blind),
            allow_overlap=blind == AUDIO_BLIND,  # all pairs have the same silence
            listnet_temperature=0.2,
            **{"learning_rate": 2e-5, "num_train_epochs": self.plan.rating_epochs, **options},
        )

    def stage3_only(self, folder: Path) -> None:
        """Starts from nothing, and so gets about stage 2's learning rate, and twice the epochs."""
        self.stage3(folder, "untrained", learning_rate=5e-4, num_train_epochs=2 * self.plan.rating_epochs)

    def stage23(self, folder: Path) -> None:
        self.stage3(folder, "stage2")

    def stage123(self, folder: Path) -> None:
        self.stage3(folder, "stage12")

    def audio_blind(self, folder: Path) -> None:
        self.stage3(folder, "stage12", AUDIO_BLIND)

    def caption_blind(self, folder: Path) -> None:
        self.stage3(folder, "stage12", CAPTION_BLIND)

    # ---- Helpers. ----

    def train(self, main: Callable, folder: Path, start: Path, validation: bool = True, **options) -> None:
        """Run a stage script with the arguments that `xacle train` would pass it."""
        options = {
            "model_name_or_path": start,
            "output_dir": folder,
            "seed": self.seed,
            "per_device_train_batch_size": BATCH_SIZE,
            "warmup_steps": 0.1,
            "save_total_limit": 1,
            "dataloader_num_workers": 0,
            "feature_cache": self.cache,
            "feature_cache_dtype": "float16",
            "report_to": "none",
            "disable_tqdm": "false",
            **(self.ratings("validation") if validation else {"eval_strategy": "no", "load_best_model_at_end": "false"}),
        } | options
        main([part for name, value in options.items() for part in (f"--{name}", str(value))])
        for checkpoint in folder.glob("checkpoint-*"):  # the best one's weights are in the folder itself
            shutil.rmtree(checkpoint)
        gc.collect()

    def ratings(self, split: str, blind: str = "") -> dict[str, Path]:
        """The arguments for a table of ratings, if wanted one with the sound or the caption hidden."""
        table, audio_dir = self.corpus / f"meta_data/{split}_average.csv", self.corpus / "wav" / split
        if blind:
            table = self.tables / f"{split}{blind}.csv"
            audio_dir = self.tables if blind == AUDIO_BLIND else audio_dir
        prefix = "validation_" if split == "validation" else ""
        return {f"{prefix or 'train_'}file": table, f"{prefix}audio_dir": audio_dir}

    def folder(self, name: str) -> Path:
        """Where a step writes; the final model is easy to find."""
        return self.out / ("model" if name == "stage123" else name)

    def sounds(self, split: str) -> list[Path]:
        return [self.corpus / "wav" / split / row["wav_file_name"] for row in self.rows(f"{split}_average")]

    def rows(self, table: str) -> list[dict[str, str]]:
        with (self.corpus / f"meta_data/{table}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def scenes(self) -> list[dict]:
        return [json.loads(line) for line in (self.corpus / "scenes.jsonl").read_text().splitlines()]

    def captions(self) -> list[str]:
        return [row["text"] for row in self.rows("captions")]

    def step_record(self, name: str) -> dict | None:
        """What a finished step left: its seconds and its result. `None` if it is not finished."""
        file = self.out / "steps" / f"{name}.json"
        return json.loads(file.read_text()) if file.is_file() else None


# What is written where, in which order. The name of a step is that of its folder and its record.
STEPS: tuple[tuple[str, str, Callable], ...] = (
    ("corpus", "Generate soundscapes, captions and simulated ratings", Recipe.make_corpus),
    ("tables", "Write tables with the sound or the caption hidden", Recipe.make_tables),
    ("encoder", "BEATs: train a small one to classify events, and freeze it", Recipe.make_encoder),
    ("clap", "CLAP: train a small one on captions", Recipe.train_clap),
    ("teacher", "Teacher: tune the CLAP on ratings", Recipe.train_teacher),
    ("pseudo_labels", "Label true and mismatched pairs with the teacher", Recipe.label),
    ("stage1", "Stage 1: captioning", Recipe.stage1),
    ("stage12", "Stage 2: pseudo-labels, after stage 1", Recipe.stage12),
    ("stage123", "Stage 3: ratings, after stages 1 and 2", Recipe.stage123),
    ("stage2", "Stage 2 without stage 1", Recipe.stage2),
    ("stage23", "Stage 3 after stage 2 alone", Recipe.stage23),
    ("stage3", "Stage 3 only", Recipe.stage3_only),
    ("audio_blind", "Control: stage 3 without sound, after stages 1 and 2", Recipe.audio_blind),
    ("caption_blind", "Control: stage 3 without caption, after stages 1 and 2", Recipe.caption_blind),
    ("results", "Score, and compare with the ratings", score_systems),
)
CURVES = ("teacher", "stage1", "stage12", "stage123", "stage2", "stage23", "stage3")


def run_demo(out: Path, quick: bool = False, seed: int = 0) -> dict:
    """
    Run the steps that are not finished yet, and write `results.json`, `table.md` and `report.html`.

    Args:
        out: A new or empty folder, or that of an earlier demo with the same `quick` and `seed`.
        quick: A run of a minute, to see that everything works; its numbers mean nothing.
        seed: Of everything random. The same seed gives the same table on the same machine.

    Returns:
        What `results.json` holds.

    Raises:
        FileExistsError: if the folder holds something else.
    """
    claim(out, {"quick": quick, "seed": seed})
    recipe, started = Recipe(out, QUICK if quick else FULL, seed), time.monotonic()
    for number, (name, title, step) in enumerate(STEPS, start=1):
        finished = recipe.step_record(name)
        if finished:
            print(f"[{number}/{len(STEPS)}] {title}: finished before", flush=True)
            continue
        print(f"\n[{number}/{len(STEPS)}] {title} ({(time.monotonic() - started) / 60:.1f} min so far)", flush=True)
        shutil.rmtree(recipe.folder(name), ignore_errors=True)  # of an interrupted run
        start = time.monotonic()
        result = step(recipe, recipe.folder(name))
        record = out / "steps" / f"{name}.json"
        record.parent.mkdir(exist_ok=True)
        part = record.with_suffix(".part")
        part.write_text(json.dumps({"seconds": time.monotonic() - start, "result": result}, indent=1) + "\n")
        part.replace(record)
    shutil.rmtree(recipe.cache, ignore_errors=True)
    return report(recipe)


def claim(out: Path, settings: dict) -> None:
    """Mark a folder as this demo's, or raise `FileExistsError` if it belongs to something else."""
    marker = out / "demo.json"
    if marker.is_file():
        earlier = json.loads(marker.read_text())
        if earlier != settings:
            runs = f"the demo run of {spelled(earlier)}, not of {spelled(settings)}"
            raise FileExistsError(f"'{out}' holds {runs}; choose another --out, or delete it")
        return
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"'{out}' is a file; --out names a folder")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"'{out}' is not empty and no earlier demo's; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(settings) + "\n")


def spelled(settings: dict) -> str:
    """The command that makes such a run."""
    return f"`xacle demo{' --quick' * settings['quick']} --seed {settings['seed']}`"


def write_rated(file: Path, rows: list[tuple]) -> None:
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([("wav_file_name", "text", "average_score"), *rows])


def report(recipe) -> dict:
    """`results.json`, `table.md` and `report.html`; returns what the first holds."""
    done = {name: recipe.step_record(name) for name, *_ in STEPS}
    ratings = recipe.rows("test_average")
    with (recipe.folder("results") / "test_stage123.csv").open(newline="") as file:
        scores = [float(row["pred_score"]) for row in csv.DictReader(file)]
    agreements = {scene["wav_file_name"]: scene["agreement"] for scene in recipe.scenes() if scene["split"] == "test"}
    run = {
        "seed": recipe.seed,
        "quick": recipe.plan == QUICK,
        "seconds": sum(record["seconds"] for record in done.values()),
        "machine": machine(),
        "steps": [{"name": name, "title": title, "seconds": done[name]["seconds"]} for name, title, *_ in STEPS],
        "parameters": sum(p.numel() for p in Scorer.from_pretrained(recipe.folder("stage123"), "cpu").model.parameters()),
        "corpus": done["corpus"]["result"],
        "pseudo_labels": done["pseudo_labels"]["result"],
        **done["results"]["result"],
        "model": "stage123",
        "curves": {name: curve(recipe, name, title) for name, title, *_ in STEPS if name in CURVES},
        "predictions": [
            {
                "wav_file_name": row["wav_file_name"],
                "text": row["text"],
                "average_score": float(row["average_score"]),
                "pred_score": score,
                "agreement": agreements[row["wav_file_name"]],
            }
            for row, score in zip(ratings, scores, strict=True)
        ],
    }
    (recipe.out / "results.json").write_text(json.dumps(run, indent=1) + "\n")
    (recipe.out / "table.md").write_text(format_table(run))
    write_report(run, recipe.corpus, recipe.out / "report.html")
    return run


def curve(recipe, name: str, title: str) -> dict:
    log = json.loads((recipe.folder(name) / "log_history.json").read_text())
    loss = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    srcc = {entry["epoch"]: entry["eval_SRCC"] for entry in log if "eval_SRCC" in entry}
    return {"title": title, "loss": loss, "srcc": list(srcc.items())}


def machine() -> dict:
    """What the numbers were computed with."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }
