"""Does the recipe work on real sounds? Makes a corpus folder from ESC-10 (400 clips of 10 classes) and runs the demo on it.

`python -m benchmarks.esc10 --data ESC10_FOLDER --out FOLDER --seeds 0 1 2`

Folds 1-4 train, fold 5 tests; 40 clips of fold 4 validate. ESC10_FOLDER holds `meta.csv` (file, fold, label, caption) and the
files it names. FOLDER gets `seedN/corpus` and `seedN/demo`, with its report.

The ratings are simulated: a clip's own caption is worth 8.5, that of a class of the same family 4, any other 1.5; four of the
demo's simulated listeners rate each pair.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from transformers.utils import logging

from xacle.benchmarks.demo_seeds import print_seeds
from xacle.core.tables import read_rows, write_rows
from xacle.demo.corpus import PAIR, RatedPair, write_ratings
from xacle.demo.run import run_demo
from xacle.demo.settings import Settings
from xacle.demo.simulated_listeners import make_panel, rate_pair

FAMILIES = {
    "dog": "animal",
    "rooster": "animal",
    "crying_baby": "human",
    "sneezing": "human",
    "chainsaw": "machine",
    "helicopter": "machine",
    "rain": "water",
    "sea_waves": "water",
    "clock_tick": "home",
    "crackling_fire": "home",
}
MATCHED, RELATED, UNRELATED = 8.5, 4.0, 1.5
VALIDATION_CLIPS = 40
RATED_CLIPS = 48  # of the training clips: few, as in the full recipe (7.5K pairs of 1,064K)
LISTENERS, RATINGS_PER_PAIR = 24, 4

ABOUT = "ESC-10: 400 real clips of 5 s, of ten classes; folds 1-4 train, fold 5 tests. A clip's caption names its class."
ABOUT_RATINGS = (
    f"A clip's own caption is worth {MATCHED}, that of a class of the same family {RELATED:g}, any other {UNRELATED}; "
    "simulated listeners, each with a bias, a spread and noise of their own, turn this into ratings."
)


def read_meta(data: Path) -> list[dict[str, str]]:
    rows = [row for _, row in read_rows(data / "meta.csv")]
    if unknown := {row["label"] for row in rows} - FAMILIES.keys():
        raise SystemExit(f"{data}/meta.csv has labels that are not ESC-10's: {sorted(unknown)}")
    return [row | {"wav_file_name": Path(row["file"]).name} for row in rows]


def rated_pairs(clips: list[dict], captions: dict[str, str], panel: list, rng: np.random.Generator) -> list[RatedPair]:
    """Each clip with its own caption, one of its family and one of another."""
    pairs = []
    for clip in clips:
        family = FAMILIES[clip["label"]]
        related = [label for label in captions if FAMILIES[label] == family and label != clip["label"]]
        unrelated = [label for label in captions if FAMILIES[label] != family]
        worth = {clip["label"]: MATCHED, rng.choice(related): RELATED, rng.choice(unrelated): UNRELATED}
        for label, value in worth.items():
            ratings = rate_pair(value, panel, RATINGS_PER_PAIR, rng)
            pairs.append(RatedPair(clip["wav_file_name"], captions[label], value, ratings))
    return pairs


def write_esc10_corpus(data: Path, folder: Path, seed: int) -> None:
    """Write ESC-10 as a corpus folder, in the layout of demo/corpus.py; the seed draws the splits and the ratings."""
    rng, meta = np.random.default_rng(seed), read_meta(data)
    captions = {row["label"]: row["caption"] for row in meta}
    fold4 = rng.permutation([index for index, row in enumerate(meta) if row["fold"] == "4"])
    held_out = set(fold4[:VALIDATION_CLIPS].tolist())
    captioned = [row for index, row in enumerate(meta) if row["fold"] != "5" and index not in held_out]
    test = [row for row in meta if row["fold"] == "5"]
    clips = {
        "train": [captioned[index] for index in rng.permutation(len(captioned))[:RATED_CLIPS]],
        "validation": [meta[index] for index in sorted(held_out)],
        "test": test,
        "captions": captioned,
    }
    (folder / "meta_data").mkdir(parents=True)
    summary = {"about": ABOUT, "ratings": "simulated", "about_ratings": ABOUT_RATINGS}
    panels = {"train": "a", "validation": "a", "test": "b"}
    for split, rows in clips.items():
        (folder / "wav" / split).mkdir(parents=True)
        for row in rows:
            shutil.copyfile(data / row["file"], folder / "wav" / split / row["wav_file_name"])
        if split != "captions":
            panel = make_panel(panels[split], LISTENERS, seed)
            summary[split] = write_ratings(folder, split, rated_pairs(rows, captions, panel, rng))
    for table, rows in (("captions", captioned), ("test_captions", test)):
        write_rows(folder / f"meta_data/{table}.csv", PAIR, [(row["wav_file_name"], row["caption"]) for row in rows])
    events = [(f"captions/{row['wav_file_name']}", row["label"], "train") for row in captioned]
    events += [(f"test/{row['wav_file_name']}", row["label"], "test") for row in test]
    write_rows(folder / "events.csv", ("wav_file_name", "labels", "split"), events)
    (folder / "corpus.json").write_text(json.dumps(summary, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder; a rerun skips the steps that are finished in it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="a minute a seed, to see that everything runs")
    options = parser.parse_args(argv)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    for seed in options.seeds:
        corpus = options.out / f"seed{seed}/corpus"
        if not (corpus / "corpus.json").is_file():  # which is written last
            shutil.rmtree(corpus, ignore_errors=True)
            write_esc10_corpus(options.data, corpus, seed)
        run_demo(options.out / f"seed{seed}/demo", Settings(options.quick, seed, corpus))
    print_seeds([options.out / f"seed{seed}/demo" for seed in options.seeds])


if __name__ == "__main__":
    main()
