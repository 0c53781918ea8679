"""A corpus of generated soundscapes with SIMULATED ratings, in the files of the XACLE challenge.

Nobody listened to these sounds. What people would say is replaced by `agreement`, a sum anyone can redo by hand, seen through
listeners who differ in bias, in spread and from one rating to the next. The numbers show that the recipe works, not how well
it works on people's ratings.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
from tqdm import tqdm

from xacle.scoring.metrics import alignment_metrics
from xacle.soundscapes.agreement import agreement, near_miss, understate
from xacle.soundscapes.scenes import (
    SAMPLING_RATE,
    Scene,
    describe,
    generator,
    pick,
    random_scene,
    render,
    to_int16,
)

SPLITS = ("train", "validation", "test", "captions")
PANEL = {"train": "a", "validation": "a", "test": "b"}
RATINGS_PER_PAIR = {"train": 4, "validation": 4, "test": 8}
RATINGS_PER_LISTENER = 13  # as in XACLE
SHARE_TRUE, SHARE_NEAR = 0.43, 0.35  # of all pairs; the rest are plain mismatches


def describe_for_rating(scene: Scene, rng: np.random.Generator) -> Scene:
    """
    What the caption of a pair says: 43 % the truth, 35 % near misses, 22 % another scene without a common event.

    All are understated alike: else their length alone would tell them apart.
    """
    draw = rng.random()
    if draw < SHARE_TRUE:
        return understate(scene, rng)
    if draw < SHARE_TRUE + SHARE_NEAR:
        return understate(near_miss(scene, rng), rng)
    while True:
        other = random_scene(rng)
        if not other.kinds & scene.kinds:
            return understate(other, rng)


@dataclass(frozen=True)
class Listener:
    """Rates round(5 + bias + spread x (agreement - 5) + noise), kept within 0-10."""

    listener_id: str
    bias: float
    spread: float
    noise: float

    def rate(self, agreement: float, rng: np.random.Generator) -> int:
        heard = 5 + self.bias + self.spread * (agreement - 5) + self.noise * rng.standard_normal()
        return int(np.clip(np.round(heard), 0, 10))


def make_panel(name: str, size: int, seed: int) -> list[Listener]:
    """
    Listeners with a bias of 0 +- 0.7 points, a spread of 0.75-1.15 and a noise of 0.8-2.2 points.

    Args:
        name: "a" (train, validation) or "b" (test). The ids, of 8 characters, begin with it: no listener is in both.
    """
    rng = generator(seed, 0, ord(name))
    codes = {}  # in the order drawn, each once
    while len(codes) < size:
        codes["".join(pick(rng, "abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(7))] = None
    return [
        Listener(name + code, 0.7 * rng.standard_normal(), rng.uniform(0.75, 1.15), rng.uniform(0.8, 2.2)) for code in codes
    ]


def rate_pair(agreement: float, panel: list[Listener], ratings: int, rng: np.random.Generator) -> list[tuple[str, int]]:
    """`(listener_id, rating)` of so many different listeners, drawn from a panel."""
    chosen = np.argsort(rng.random(len(panel)))[:ratings]
    return [(panel[index].listener_id, panel[index].rate(agreement, rng)) for index in chosen]


def write_corpus(
    folder: str | Path, seed: int = 0, train: int = 400, validation: int = 100, test: int = 100, captions: int = 600
) -> dict:
    """
    Write `wav/{train,validation,test,captions}/NNNNN.wav` (16 kHz, mono, 16-bit, 10 s) and `meta_data/` with XACLE's tables
    `{train,validation,test}.csv` (`wav_file_name,text,score,listener_id`) and `*_average.csv`
    (`wav_file_name,text,average_score`), and `captions.csv` (`wav_file_name,text`) of true captions. `scenes.jsonl` tells for
    each clip what is heard, what is described, and the noise-free agreement of the two. No clip has two captions.

    Args:
        train, validation, test: Rated pairs, at least two each.
        captions: Clips with a caption and without a rating.

    Returns:
        What `corpus.json` holds: the seed and, for each rated split, the numbers of pairs, ratings and listeners, the mean
        rating, and the noise ceiling: the SRCC between the noise-free agreement and the mean ratings.

    Raises:
        FileExistsError: if the folder holds anything.
        ValueError: if a rated split has fewer than two pairs.
    """
    folder, sizes = Path(folder), dict(zip(SPLITS, (train, validation, test, captions), strict=True))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"'{folder}' is not an empty folder: a corpus is written into a new or empty one")
    if min(train, validation, test) < 2:
        raise ValueError(f"train, validation and test need at least two pairs each, got {train}, {validation}, {test}")
    ratings = {"a": 4 * (train + validation), "b": 8 * test}
    panels = {name: make_panel(name, max(8, total // RATINGS_PER_LISTENER), seed) for name, total in ratings.items()}
    summary = {"seed": seed, "ratings": "simulated", "captions": captions}
    (folder / "meta_data").mkdir(parents=True)
    with (
        (folder / "scenes.jsonl").open("w") as truth,
        tqdm(total=sum(sizes.values()), desc="soundscapes", unit=" clips") as bar,
    ):
        for number, (split, size) in enumerate(sizes.items(), start=1):
            (folder / "wav" / split).mkdir(parents=True)
            names = [f"{sum(list(sizes.values())[: number - 1]) + pair:05d}.wav" for pair in range(size)]
            pairs, agreements, ratings = [], [], []
            for pair, name in enumerate(names):
                rng = generator(seed, number, pair)  # its own: a split's first sounds do not depend on the sizes
                scene = random_scene(rng)
                described = scene if split == "captions" else describe_for_rating(scene, rng)
                pairs.append((name, describe(described, rng)))
                agreements.append(agreement(scene, described))
                wave = to_int16(render(scene, int(rng.random() * 2**32)))
                sf.write(folder / "wav" / split / name, wave, SAMPLING_RATE, subtype="PCM_16")
                fields = {"wav_file_name": name, "split": split, "heard": asdict(scene), "described": asdict(described)}
                truth.write(json.dumps({**fields, "agreement": round(agreements[-1], 4)}) + "\n")
                if split != "captions":
                    ratings.append(rate_pair(agreements[-1], panels[PANEL[split]], RATINGS_PER_PAIR[split], rng))
                bar.update()
            if split == "captions":
                _write_csv(folder / "meta_data/captions.csv", "wav_file_name,text", pairs)
            else:
                summary[split] = _write_ratings(folder / "meta_data", split, pairs, ratings, agreements)
    (folder / "corpus.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _write_ratings(folder: Path, split: str, pairs: list, ratings: list, agreements: list[float]) -> dict:
    """Both tables of a split; returns what `corpus.json` says about it."""
    rows = [(*pair, score, who) for pair, given in zip(pairs, ratings, strict=True) for who, score in given]
    means = [float(np.mean([score for _, score in given])) for given in ratings]
    _write_csv(folder / f"{split}.csv", "wav_file_name,text,score,listener_id", rows)
    averages = [(*pair, mean) for pair, mean in zip(pairs, means, strict=True)]
    _write_csv(folder / f"{split}_average.csv", "wav_file_name,text,average_score", averages)
    return {
        "pairs": len(pairs),
        "ratings": len(rows),
        "listeners": len({who for *_, who in rows}),
        "mean_rating": round(float(np.mean(means)), 4),
        "noise_ceiling_srcc": round(alignment_metrics(agreements, means)["SRCC"], 4),
    }


def _write_csv(file: Path, header: str, rows: Iterable) -> None:
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([header.split(","), *rows])
