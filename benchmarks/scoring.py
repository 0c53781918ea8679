"""Scoring: pairs a second, captions for one sound, the least a pair can cost, memory, large tables."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile as sf
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from xacle.audio_xacle import SAMPLING_RATE
from xacle.benchmarks.baseline import PlainModel
from xacle.benchmarks.bench import SENTENCE, Bench
from xacle.benchmarks.measure import default_malloc, in_fresh_process, interleaved, peak_memory, table, target
from xacle.demo.tiny_models import save_tiny_scorer
from xacle.scoring.malloc import keep_freed_memory
from xacle.scoring.scorer import Scorer
from xacle.scoring.table_job import ScoringOptions, score_table

COMPARED = [
    "pairs/s, baseline",
    "pairs/s, ours",
    "CPU s/pair, baseline",
    "CPU s/pair, ours",
    "ratio CPU",
    "ratio wall",
    "max score difference",
]


def scorers(bench: Bench, audio: list[Path], captions: list[str], batch_size: int) -> dict[str, Callable]:
    """The two ways to score, each with the allocator it comes with."""
    scorer, plain = Scorer(bench.model, bench.processor), PlainModel(bench.model, bench.processor)

    def ours() -> np.ndarray:
        keep_freed_memory()
        return scorer.score(audio, captions, batch_size)

    def baseline() -> np.ndarray:
        default_malloc()
        return plain.score(audio, captions, batch_size)

    return {"baseline": baseline, "ours": ours}


def compared(bench: Bench, what: str, audio: list[Path], captions: list[str], batch_size: int) -> list:
    """Cells of a row: pairs/s and CPU s/pair of both, the two ratios, the largest difference."""
    measured = interleaved(scorers(bench, audio, captions, batch_size), bench.repeats)
    plain, ours = measured["baseline"], measured["ours"]
    pairs, difference = len(captions), bench.check(what, float(np.abs(plain.result - ours.result).max()))
    bench.ratios[f"scoring, {what}"] = plain.cpu / ours.cpu
    speeds = [pairs / plain.wall, pairs / ours.wall, plain.cpu / pairs, ours.cpu / pairs]
    return [*speeds, plain.cpu / ours.cpu, plain.wall / ours.wall, difference]


def scoring(bench: Bench) -> str:
    """Pairs of distinct sounds, by batch size."""
    rows = []
    for size in bench.batch_sizes:
        pairs = max(size, 2)
        rows.append([size, *compared(bench, f"batch {size}", bench.sounds[:pairs], bench.captions[:pairs], size)])
    return "Every pair has a sound of its own (10 s) and a caption of 12 words.\n\n" + table(["batch", *COMPARED], rows)


def captions_per_clip(bench: Bench) -> str:
    """Eight pairs of eight, two and one sounds."""
    rows = []
    for captions in (1, 4, 8):
        audio = [bench.sounds[pair // captions] for pair in range(8)]
        what = f"{captions} caption{'s' * (captions > 1)} a clip"
        rows.append([captions, *compared(bench, what, audio, bench.captions[:8], 8)])
    text = "Eight pairs in a batch of 8.\n\n" + table(["captions a clip", *COMPARED], rows)
    return f"{text}\n\n{target('one clip with 8 captions, CPU time', rows[-1][5], 2.2, 'x')}"


def matrix_products(bench: Bench) -> Callable[[], None]:
    """The matrix products of scoring one pair, alone: every linear layer with its own weights, the attention's products
    and the position convolution."""
    model, calls = bench.model, []
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: calls.append((module.weight, inputs[0].shape)))
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    Scorer(model, bench.processor).score(bench.sounds[:1], bench.captions[:1])
    for hook in hooks:
        hook.remove()
    inputs = {shape: torch.randn(shape) for _, shape in calls}

    audio, text = model.config.audio_config, model.config.text_config
    patches = model.model.audio_tower.embeddings.patch_embedding.weight.flatten(1)
    tokens = audio.num_mel_bins // audio.patch_size * (998 // audio.patch_size)
    length = len(bench.processor(text=bench.captions[:1])["input_ids"][0])
    groups, channels = audio.num_conv_pos_embedding_groups, audio.hidden_size // audio.num_conv_pos_embedding_groups
    taps = channels * audio.num_conv_pos_embeddings
    pixels = torch.randn(tokens, audio.patch_size**2)
    convolution = torch.randn(groups, tokens, taps), torch.randn(groups, taps, channels)
    attentions = []
    for config, count in ((audio, tokens), (text, length)):
        heads = config.num_attention_heads
        query, key = torch.randn(2, heads, count, config.hidden_size // heads)
        attentions.append((config.num_hidden_layers, query, key, torch.randn(heads, count, count)))

    @torch.inference_mode()
    def run() -> None:
        F.linear(pixels, patches)
        torch.bmm(*convolution)
        for weight, shape in calls:
            F.linear(inputs[shape], weight)
        for layers, query, key, weights in attentions:
            for _ in range(layers):
                torch.bmm(query, key.transpose(1, 2))
                torch.bmm(weights, key)

    return run


def floor(bench: Bench) -> str:
    """One pair against its matrix products."""
    products = matrix_products(bench)
    with FlopCounterMode(display=False) as counter:
        products()
    variants = {"products": products, **scorers(bench, bench.sounds[:1], bench.captions[:1], 1)}
    measured = interleaved(variants, 3 * bench.repeats)
    work = counter.get_total_flops() / 1e9
    rows = [[name, one.wall, one.cpu, work / one.wall] for name, one in measured.items()]
    names = {"products": "its matrix products alone", "baseline": "baseline", "ours": "ours"}
    text = f"One pair: {work:.0f} GFLOP of matrix products, the rest is everything else, decoding included.\n\n" + table(
        ["", "wall s", "CPU s", "GFLOP/s"], [[names[row[0]], *row[1:]] for row in rows]
    )
    ratio = measured["ours"].wall / measured["products"].wall
    return f"{text}\n\n{target('one pair, time of its matrix products', ratio, 1.15, 'x', at_most=True)}"


# --- Memory and start ----------------------------------------------------------------------------------------------------


def load_and_score(folder: Path, sounds: list[Path], captions: list[str], batch_size: int, plain: bool) -> dict[str, float]:
    """In a process of its own: seconds to load a model, and the most memory once it has scored a batch."""
    if not plain:
        keep_freed_memory()
    start = time.perf_counter()
    scorer = Scorer.from_pretrained(folder, device="cpu")
    seconds = time.perf_counter() - start
    if plain:
        PlainModel(scorer.model, scorer.processor).score(sounds, captions, batch_size)
    else:
        scorer.score(sounds, captions, batch_size)
    return {"load": seconds, "peak": peak_memory()}


def memory(bench: Bench) -> str:
    """Peak memory of scoring, and how long a process takes until it can."""
    folder, rows, peaks, loads = bench.folder / "model", [], {}, []
    for size in bench.memory_batches:
        for name in ("baseline", "ours"):
            found = in_fresh_process(
                load_and_score, folder, bench.sounds[:size], bench.captions[:size], size, name == "baseline"
            )
            peaks[size, name] = found["peak"]
            loads.append(found["load"])
            rows.append([name, size, found["peak"]])
    command = [sys.executable, "-c", "import xacle.scoring.scorer"]
    imports = interleaved({"imports": lambda: subprocess.run(command, check=True)}, bench.repeats)["imports"].wall
    return "\n\n".join(
        [
            table(["", "batch", "peak memory, GB"], rows),
            f"Loading the model from a warm disk: {min(loads):.2f} s (the least of {len(loads)}); starting Python and its "
            f"imports: {imports:.1f} s.",
            "\n".join(
                [
                    *(
                        target(f"peak memory of scoring in batches of {size}", peaks[size, "ours"], 3.6, " GB", at_most=True)
                        for size in bench.memory_batches
                    ),
                    target("loading the model", min(loads), 5, " s", at_most=True),
                ]
            ),
        ]
    )


# --- Large tables --------------------------------------------------------------------------------------------------------


def score_rows(folder: Path, rows: int) -> dict[str, float]:
    """In a process of its own: a table of so many rows over 300 sounds, scored by a model that takes no time."""
    rng, sounds = np.random.default_rng(0), folder / "short"
    if not sounds.exists():
        sounds.mkdir()
        for number in range(300):
            sf.write(sounds / f"{number}.wav", rng.standard_normal(1600) / 10, SAMPLING_RATE)
    pairs, output = folder / f"{rows}.csv", folder / f"{rows}_scores.csv"
    with pairs.open("w") as file:
        file.write("wav_file_name,text\n")
        file.writelines(f"{row % 300}.wav,{SENTENCE[: row % 90]} {row}\n" for row in range(rows))
    model = folder / "tiny"
    if not model.exists():
        save_tiny_scorer(model)
    Scorer.from_pretrained(model, device="cpu")  # imports what reading a model needs
    before, start = peak_memory(), time.perf_counter()
    with (
        mock.patch.object(Scorer, "encode", lambda self, fbank: torch.zeros(len(fbank), 100, 896)),
        mock.patch.object(Scorer, "rate", lambda self, captions, audio: np.zeros(len(captions), np.float32)),
    ):
        score_table(model, pairs, sounds, output, ScoringOptions(device="cpu"))
    return {"wall": time.perf_counter() - start, "before": before, "peak": peak_memory()}


def rows(bench: Bench) -> str:
    """What reading, checking, sorting, journalling and writing a table cost."""
    found = {count: in_fresh_process(score_rows, bench.folder, count) for count in bench.rows}
    lines = [[f"{count:,}", one["wall"], 1e6 * one["wall"] / count, one["peak"], one["before"]] for count, one in found.items()]
    text = "`xacle score --input` with a model that takes no time; 300 short sounds are decoded.\n\n" + table(
        ["rows", "s", "us a row", "peak memory, GB", "of it before the table was read"], lines
    )
    if 100_000 in found:
        text += f"\n\n{target('100,000 rows', found[100_000]['wall'], 60, ' s', at_most=True)}"
    return text
