"""A corpus of generated soundscapes with SIMULATED ratings, in the files of the XACLE challenge.

Nobody listened to these sounds. Instead of people, `agreement` says how well a caption fits, by a sum that can be computed by
hand, and simulated listeners turn it into ratings. The numbers show that the recipe works, not how well it works on people's
ratings.
"""

import json
from dataclasses import asdict, dataclass, replace
from itertools import count
from math import ceil
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from tqdm import tqdm

from xacle.core.tables import check_output_folder, write_rows
from xacle.demo.audio_encoder import LabeledClips, fbank_of
from xacle.demo.corpus import PAIR, RATED, RatedPair, write_ratings
from xacle.demo.simulated_listeners import make_panel, rate_pair
from xacle.soundscapes.agreement import agreement
from xacle.soundscapes.captions import describe
from xacle.soundscapes.events import AXIS_OF, KINDS, random_event
from xacle.soundscapes.near_misses import near_miss, understate
from xacle.soundscapes.random_numbers import generator
from xacle.soundscapes.render import SAMPLING_RATE, render, to_int16
from xacle.soundscapes.scenes import Scene, random_scene

SPLITS = (*RATED, "captions")
PANEL = {"train": "a", "validation": "a", "test": "b"}
RATINGS_PER_PAIR = {"train": 4, "validation": 4, "test": 8}
RATINGS_PER_LISTENER = 13  # as in XACLE
SCENES_PER_GROUP = 3
SOUNDS_PER_CAPTION = SCENES_PER_GROUP + 1
PAIRS_PER_GROUP = SCENES_PER_GROUP * SOUNDS_PER_CAPTION
EVENT_CLASSES = (*KINDS, *AXIS_OF)

ABOUT = (
    f"Scenes of 10 s with one or two of {len(KINDS)} kinds of events (rain, a dog, a siren, footsteps ...), generated from a "
    f"seed together with their captions. As in XACLE, a caption is rated with several sounds, here {SOUNDS_PER_CAPTION}: its "
    "own, two that are nearly right (the order is reversed, details are exchanged between the events, one event is another "
    "...) and one without a common event."
)
ABOUT_RATINGS = (
    "A sum compares the sound with the caption: events, counts, order, attributes. Simulated listeners, each with a bias, a "
    "spread and noise of their own, turn it into ratings; others rate the test pairs. The noise ceiling is the SRCC of the sum "
    "itself with the mean ratings."
)


@dataclass(frozen=True)
class DrawnPair:
    """A sound, as its scene and the seed it is rendered with, and a caption, as the scene it describes and its text."""

    scene: Scene
    seed: int
    described: Scene
    text: str

    @property
    def agreement(self) -> float:
        return agreement(self.scene, self.described)

    def write_sound(self, path: Path) -> None:
        sf.write(path, to_int16(render(self.scene, self.seed)), SAMPLING_RATE, subtype="PCM_16")


def draw_pair(scene: Scene, described: Scene, text: str, rng: np.random.Generator) -> DrawnPair:
    return DrawnPair(scene, int(rng.random() * 2**32), described, text)


def draw_group(rng: np.random.Generator) -> list[Scene]:
    """A scene and two near misses of it. One of them is the reverse of a scene with an order."""
    scenes = [random_scene(rng)]
    if scenes[0].relation == "followed by":
        scenes.append(replace(scenes[0], events=scenes[0].events[::-1]))
    while len(scenes) < SCENES_PER_GROUP:
        if (miss := near_miss(scenes[0], rng)) not in scenes:
            scenes.append(miss)
    return scenes


def draw_rated_pairs(size: int, *seed: int) -> list[DrawnPair]:
    """
    The pairs of a rated split: a caption for each scene of a group, with a sound of each of them and one of another group.

    Every scene is described as often as it sounds: neither the sound nor the caption alone says how well they match. Details
    are left out of all captions alike. Each group has its own generator: the first ones do not depend on `size`.
    """
    generators = [generator(*seed, group) for group in range(max(2, ceil(size / PAIRS_PER_GROUP)))]
    groups = [draw_group(rng) for rng in generators]
    pairs = []
    for group, rng in zip(groups, generators, strict=True):
        for scene in group:
            described = understate(scene, rng)
            text = describe(described, rng)
            other = random_scene(rng)
            while other.kinds & scene.kinds:
                other = random_scene(rng)
            pairs += [draw_pair(sounding, described, text, rng) for sounding in (*group, other)]
    return pairs[:size]


def draw_captioned_pair(*seed: int) -> DrawnPair:
    rng = generator(*seed)
    scene = random_scene(rng)
    return draw_pair(scene, scene, describe(scene, rng), rng)


def write_corpus(
    folder: str | Path, seed: int = 0, train: int = 400, validation: int = 100, test: int = 100, captions: int = 600
) -> dict:
    """
    Write a corpus folder (see corpus.py) with sounds `NNNNN.wav` (16 kHz, mono, 16-bit, 10 s), the tables first.

    Rated pairs come in groups of twelve: three captions with four sounds each. `scenes.jsonl` has, for each pair, the scene,
    the scene that the caption describes, and the agreement of the two.

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
    sizes = {"train": train, "validation": validation, "test": test}
    if min(sizes.values()) < 2:
        raise ValueError(f"train, validation and test need at least two pairs each, got {train}, {validation}, {test}")
    summary = {"seed": seed, "about": ABOUT, "ratings": "simulated", "about_ratings": ABOUT_RATINGS, "captions": captions}
    totals = {"a": 4 * (train + validation), "b": 8 * test}
    panels = {name: make_panel(name, max(8, total // RATINGS_PER_LISTENER), seed) for name, total in totals.items()}
    (folder / "meta_data").mkdir(parents=True)
    drawn = {split: draw_rated_pairs(size, seed, number) for number, (split, size) in enumerate(sizes.items(), start=1)}
    drawn["captions"] = [draw_captioned_pair(seed, len(SPLITS), index) for index in range(captions)]
    numbers, sounds = count(), []  # in file names
    with (folder / "scenes.jsonl").open("w") as truth:
        for number, (split, pairs) in enumerate(drawn.items(), start=1):
            names = [f"{next(numbers):05d}.wav" for _ in pairs]
            sounds += [(folder / "wav" / split / name, pair) for name, pair in zip(names, pairs, strict=True)]
            for name, pair in zip(names, pairs, strict=True):
                fields = {"wav_file_name": name, "split": split, "agreement": round(pair.agreement, 4)}
                truth.write(json.dumps(fields | {"scene": asdict(pair.scene), "described": asdict(pair.described)}) + "\n")
            if split == "captions":
                rows = [(name, pair.text) for name, pair in zip(names, pairs, strict=True)]
                write_rows(folder / "meta_data/captions.csv", PAIR, rows)
                continue
            rng, panel = generator(seed, 10 + number), panels[PANEL[split]]
            rated = [
                RatedPair(name, pair.text, pair.agreement, rate_pair(pair.agreement, panel, RATINGS_PER_PAIR[split], rng))
                for name, pair in zip(names, pairs, strict=True)
            ]
            summary[split] = write_ratings(folder, split, rated)
            if split == "test":
                rows = [(name, describe(pair.scene, generator(0))) for name, pair in zip(names, pairs, strict=True)]
                write_rows(folder / "meta_data/test_captions.csv", PAIR, rows)

    for split in SPLITS:
        (folder / "wav" / split).mkdir(parents=True)
    for path, pair in tqdm(sounds, desc="soundscapes", unit=" clips"):
        pair.write_sound(path)
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
