"""bfloat16 on a GPU: scoring, training, the share of the machine's matrix products, the hours of the full recipe."""

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from xacle.benchmarks.baseline import PlainModel
from xacle.benchmarks.bench import GPU_PAIRS, Bench
from xacle.benchmarks.measure import interleaved, table, target
from xacle.benchmarks.training import Step, Training
from xacle.core.clips import default_workers
from xacle.modeling_xacle import XacleForAlignmentScoring
from xacle.scoring.scorer import Scorer

RECIPE = {1: 273_000 * 3, 2: 1_064_000 * 20, 3: 7_500 * 150}  # the paper's pairs times epochs, by stage


def matmul_ceiling(device: str, size: int) -> float:
    """TFLOP/s of the machine's matrix products in bfloat16."""
    left, right = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    wall = interleaved({"product": lambda: [left @ right for _ in range(10)]}, 5)["product"].wall
    return 10 * 2 * size**3 / wall / 1e12


def samples_per_second(step: Step, batch: int) -> float:
    def several() -> None:
        for _ in range(3):
            step.gradients()
            step.step()

    several()
    return 3 * batch / interleaved({"step": several}, 3)["step"].wall


def accelerator(bench: Bench) -> str:
    """bfloat16 scoring and training on a GPU; on a CPU a dry run, whose numbers mean nothing."""
    device, on_gpu = bench.device, bench.device == "cuda"
    folder = bench.folder / "model"
    ceiling = matmul_ceiling(device, 8192 if on_gpu else 256)
    pairs = GPU_PAIRS if on_gpu else 8
    audio, captions = bench.sounds[:pairs], bench.captions[:pairs]
    plain = PlainModel(Scorer.from_pretrained(folder, device).model, bench.processor)
    scorer = Scorer.from_pretrained(folder, device, "bfloat16")
    workers = default_workers(pairs, scorer.model.device)
    variants = {
        "baseline, float32, batch 16": lambda: plain.score(audio, captions, 16),
        **{
            f"ours, bfloat16, batch {size}": lambda size=size: scorer.score(audio, captions, size, workers=workers)
            for size in (16, 64, "auto")
        },
    }
    for run in variants.values():
        run()
    measured = interleaved(variants, 2)
    reference, *_, fast = measured.values()
    lines = [[name, pairs / one.wall, reference.wall / one.wall] for name, one in measured.items()]
    difference = float(np.abs(reference.result - fast.result).max())

    model = XacleForAlignmentScoring.from_pretrained(folder).to(device)
    speeds, batch = {}, 16 if on_gpu else 4
    plain_step = Training(bench, model, batch).steps(2)["baseline"]
    speeds["baseline", 2, batch] = samples_per_second(plain_step, batch)
    del plain_step
    for size in (batch, 2 * batch, 4 * batch, 8 * batch) if on_gpu else (batch,):
        step = Training(bench, model, size, bf16=True).steps(2)["ours"]
        speeds["ours", 2, size] = samples_per_second(step, size)
    with FlopCounterMode(display=False) as counter:
        step.gradients()
    work = counter.get_total_flops() / size / 1e12  # TFLOP a sample
    for stage in (1, 3):
        step = Training(bench, model, batch, bf16=True).steps(stage)["ours"]
        speeds["ours", stage, batch] = samples_per_second(step, batch)
    best = max(speed for (name, stage, _), speed in speeds.items() if (name, stage) == ("ours", 2))
    trained = [
        [f"{name}, stage {stage}, batch {size}", speed, 100 * speed * work / ceiling if stage == 2 and name == "ours" else ""]
        for (name, stage, size), speed in speeds.items()
    ]
    hours = {stage: RECIPE[stage] / speeds["ours", stage, batch] / 3600 for stage in (1, 2, 3)}
    return "\n\n".join(
        [
            "" if on_gpu else "**A dry run on the CPU: these numbers mean nothing.**",
            f"Measured ceiling of bfloat16 matrix products: {ceiling:.3g} TFLOP/s. Scores of the two differ by up to "
            f"{difference:.1e} (bfloat16).",
            table(["scoring", "pairs/s", "ratio"], lines),
            table(["training", "samples/s", "MFU, %"], trained),
            f"The full recipe at batch {batch}: " + ", ".join(f"stage {stage} {value:.1f} h" for stage, value in hours.items()),
            "\n".join(
                [
                    target("scoring", reference.wall / fast.wall, 6, "x"),
                    target("stage 2", speeds["ours", 2, batch] / speeds["baseline", 2, batch], 4, "x"),
                    target("MFU at the best batch", 100 * best * work / ceiling, 40, " %"),
                ]
            ),
        ]
    ).strip()
