"""`python make_examples.py` writes the example sounds, with captions that fit and that do not. It needs the package xacle."""

import csv
from pathlib import Path

import numpy as np
import soundfile as sf

from xacle.soundscapes.scenes import SAMPLING_RATE, Event, Scene, render

DOG = Event("dog", 3)
EXAMPLES = {
    "dog_and_rain": (
        [Scene((DOG, Event("rain")), "while")],
        ["A dog barks three times while rain falls", "Rain falls on a roof", "A cat meows twice", "A church bell tolls"],
    ),
    "bell_then_applause": (
        [Scene((Event("bell", 2), Event("applause")), "followed by")],
        ["A bell rings twice, followed by an audience applauding", "An audience applauds before a bell rings twice"],
    ),
    "siren": ([Scene((Event("siren"),))], ["A siren wails"]),
    "three_scenes": (
        [Scene((Event("bird"),)), Scene((Event("engine"),)), Scene((Event("waves"),))],
        ["A bird chirps", "An engine idles", "Waves roll onto a beach"],
    ),
}


def main() -> None:
    folder = Path(__file__).parent / "examples"
    folder.mkdir(exist_ok=True)
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["wav_file_name", "text"])
        for name, (scenes, captions) in EXAMPLES.items():
            sound = np.concatenate([render(scene, seed) for seed, scene in enumerate(scenes)])
            sf.write(folder / f"{name}.mp3", sound, SAMPLING_RATE)
            writer.writerows((f"{name}.mp3", caption) for caption in captions)


if __name__ == "__main__":
    main()
