"""A corpus of generated soundscapes with SIMULATED ratings, in the files of the XACLE challenge.

Nobody listened to these sounds. Instead of people, `agreement` says how well a caption fits, by a sum that can be computed by
hand, and simulated listeners turn it into ratings. The numbers show that the recipe works, not how well it works on people's
ratings.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from tqdm import tqdm

from xacle.core.tables import check_output_folder, write_rows
from xacle.demo.audio_encoder import LabeledClips, fbank_of
from xacle.demo.corpus import PAIR, RatedPair, write_ratings
from xacle.demo.simulated_listeners import make_panel, rate_pair
from xacle.soundscapes.agreement import agreement
from xacle.soundscapes.captions import describe
from xacle.soundscapes.events import AXIS_OF, KINDS, random_event
from xacle.soundscapes.near_misses import near_miss, understate
from xacle.soundscapes.random_numbers import generator
from xacle.soundscapes.render import SAMPLING_RATE, render, to_int16
from xacle.soundscapes.scenes import Scene, random_scene

PANEL = {"train": "a", "validation": "a", "test": "b"}
RATINGS_PER_PAIR = {"train": 4, "validation": 4, "test": 8}
RATINGS_PER_LISTENER = 13  # as in XACLE
SHARE_TRUE, SHARE_NEAR = 0.43, 0.35  # of all pairs; the rest are plain mismatches
EVENT_CLASSES = (*KINDS, *AXIS_OF)

ABOUT = (
    f"Scenes of 10 s with one or two of {len(KINDS)} kinds of events (rain, a dog, a siren, footsteps ...), generated from a "
    "seed together with their captions. Some captions of the rated pairs fit, some have one thing wrong, some describe another "
    "sound."
)
ABOUT_RATINGS = (
    "A sum compares the sound with the caption: events, counts, order, attributes. Simulated listeners, each with a bias, a "
    "spread and noise of their own, turn it into ratings; others rate the test pairs. The noise ceiling is the SRCC of the sum "
    "itself with the mean ratings."
)


def draw_description(scene: Scene, rng: np.random.Generator) -> Scene:
    """
    What the caption of a rated pair says: 43 % the truth, 35 % near misses, 22 % another scene without a common event.

    Details are left out of all of them alike; otherwise the length of a caption alone would predict its rating.
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


def write_corpus(
    folder: str | Path, seed: int = 0, train: int = 400, validation: int = 100, test: int = 100, captions: int = 600
) -> dict:
    """
    Write a corpus folder (see corpus.py) with sounds `NNNNN.wav` (16 kHz, mono, 16-bit, 10 s), one caption each.

    `scenes.jsonl` has, for each clip, the scene, the scene that the caption describes, and the agreement of the two.

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
    folder = check_output_folder(folder)
    sizes = {"train": train, "validation": validation, "test": test, "captions": captions}
    if min(train, validation, test) < 2:
        raise ValueError(f"train, validation and test need at least two pairs each, got {train}, {validation}, {test}")
    summary = {"seed": seed, "about": ABOUT, "ratings": "simulated", "about_ratings": ABOUT_RATINGS, "captions": captions}
    totals = {"a": 4 * (train + validation), "b": 8 * test}
    panels = {name: make_panel(name, max(8, total // RATINGS_PER_LISTENER), seed) for name, total in totals.items()}
    (folder / "meta_data").mkdir(parents=True)
    first = 0
    with (
        (folder / "scenes.jsonl").open("w") as truth,
        tqdm(total=sum(sizes.values()), desc="soundscapes", unit=" clips") as bar,
    ):
        for number, (split, size) in enumerate(sizes.items(), start=1):
            (folder / "wav" / split).mkdir(parents=True)
            pairs, true_captions = [], []
            for index in range(size):
                rng = generator(seed, number, index)  # its own: a split's first sounds do not depend on the sizes
                scene = random_scene(rng)
                described = scene if split == "captions" else draw_description(scene, rng)
                pair = RatedPair(f"{first + index:05d}.wav", describe(described, rng), agreement(scene, described), [])
                wave = to_int16(render(scene, int(rng.random() * 2**32)))
                sf.write(folder / "wav" / split / pair.wav_file_name, wave, SAMPLING_RATE, subtype="PCM_16")
                if split != "captions":
                    pair.ratings = rate_pair(pair.agreement, panels[PANEL[split]], RATINGS_PER_PAIR[split], rng)
                fields = {"wav_file_name": pair.wav_file_name, "split": split, "agreement": round(pair.agreement, 4)}
                truth.write(json.dumps({**fields, "scene": asdict(scene), "described": asdict(described)}) + "\n")
                pairs.append(pair)
                true_captions.append((pair.wav_file_name, describe(scene, generator(0))))
                bar.update()
            first += size
            if split == "captions":
                write_rows(folder / "meta_data/captions.csv", PAIR, [(pair.wav_file_name, pair.text) for pair in pairs])
            else:
                summary[split] = write_ratings(folder, split, pairs)
            if split == "test":
                write_rows(folder / "meta_data/test_captions.csv", PAIR, true_captions)
    (folder / "corpus.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def event_clips(clips_per_kind: int, rng: np.random.Generator) -> LabeledClips:
    """Clips with one event each, labeled with its kind and its attributes (loud, high, fast, near, ...)."""
    clips, labels = [], []
    for kind in tqdm([kind for kind in KINDS for _ in range(clips_per_kind)], desc="events", unit="clip"):
        event = random_event(rng, kind)
        clips.append(fbank_of(render(Scene((event,)), int(rng.random() * 2**32))))
        labels.append([float(name == kind or name in event.attributes) for name in EVENT_CLASSES])
    return LabeledClips(torch.stack(clips), torch.tensor(labels), EVENT_CLASSES)


def scene_clips(count: int, rng: np.random.Generator) -> LabeledClips:
    """Clips with one or two events each, labeled with their kinds only."""
    clips, labels = [], []
    for _ in range(count):
        scene = random_scene(rng)
        clips.append(fbank_of(render(scene, int(rng.random() * 2**32))))
        labels.append([float(name in scene.kinds) for name in EVENT_CLASSES])
    return LabeledClips(torch.stack(clips), torch.tensor(labels), EVENT_CLASSES)
