"""The systems that the demo compares, their scores, and the rows of its table."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from xacle.clap.encoder import ClapEncoder
from xacle.core.tables import write_scores
from xacle.scoring.captions import caption_scores, generate_captions, load_captioner
from xacle.scoring.ensemble import ensemble
from xacle.scoring.evaluation import evaluate
from xacle.scoring.metrics import bootstrap_intervals
from xacle.scoring.scorer import Scorer

SCORED = ("validation", "test")
BLIND_CAPTION = "A sound"
EXAMPLE_CAPTIONS = 5
ENSEMBLE = ("stage123", "stage23")


@dataclass(frozen=True)
class System:
    """
    A row of the table.

    Args:
        group: "untrained", "system", "teacher", "ensemble" or "control".
        paper_validation, paper_test: The paper's SRCC, where it has the row.
    """

    key: str
    configuration: str
    group: str
    paper_validation: float | None = None
    paper_test: float | None = None


# The paper's rows in its order, and ours.
SYSTEMS = (
    System("untrained", "Untrained, but for the encoder", "untrained"),
    System("stage1", "Stage 1 only", "system", 0.352),
    System("stage12", "Stages 1+2", "system", 0.598),
    System("stage3", "Stage 3 only", "system", 0.574),
    System("stage23", "Stages 2+3", "system", 0.669, 0.626),
    System("stage123", "Stages 1+2+3 (full pipeline)", "system", 0.674, 0.625),
    System("teacher", "Teacher: CLAP tuned on ratings", "teacher", 0.602),
    System("ensemble", "Ensemble of 1+2+3 and 2+3", "ensemble", 0.678, 0.632),
    System("audio_blind", "Control: stages 1+2+3 without sound", "control"),
    System("caption_blind", "Control: stages 1+2+3 without caption", "control"),
)


EARLY = ("untrained", "stage1", "stage12", "stage3", "teacher")  # which wait for nothing that takes long
LATE = ("stage23", "stage123", "audio_blind", "caption_blind")


def score_early(recipe, folder: Path) -> dict:
    """Write the scores of the systems that are ready first; returns some captions that stage 1 writes."""
    folder.mkdir()
    write_all_scores(recipe, folder, EARLY)
    captions = written_captions(recipe, "test")
    true_captions = recipe.corpus.true_captions()
    examples = [
        {"wav_file_name": sound.name, "written": caption, "true": true_captions.get(sound.name)}
        for sound, caption in list(captions.items())[:EXAMPLE_CAPTIONS]
    ]
    return {"captions": examples}


def score_systems(recipe, folder: Path) -> dict:
    """Write every system's scores as `<split>_<key>.csv`; returns the rows of the table and captions that stage 1 writes."""
    shutil.copytree(recipe.folder("early_scores"), folder)
    write_all_scores(recipe, folder, LATE)
    for split in SCORED:
        ensemble([folder / f"{split}_{key}.csv" for key in ENSEMBLE], folder / f"{split}_ensemble.csv")
    table = [vars(system) | {split: srcc(recipe, folder, system.key, split) for split in SCORED} for system in SYSTEMS]
    return {"table": table, **recipe.step_record("early_scores")["result"]}


def write_all_scores(recipe, folder: Path, keys: Iterable[str]) -> None:
    for split in SCORED:
        pairs = recipe.corpus.pairs(split)
        for key in keys:
            scores = scores_of(recipe, split, key)
            rows = [(pair.wav_file_name, pair.text, score) for pair, score in zip(pairs, scores, strict=True)]
            write_scores(folder / f"{split}_{key}.csv", rows, with_text=True)


def srcc(recipe, folder: Path, key: str, split: str) -> dict[str, float]:
    """The SRCC of a system's scores with the ratings: `value`, and the `low` and `high` ends of its 95 % interval."""
    found = evaluate(folder / f"{split}_{key}.csv", recipe.corpus.table(split), resamples=0)
    low, high = bootstrap_intervals(found.predictions, found.ratings, names=("SRCC",))["SRCC"]
    return {"value": found.metrics["SRCC"], "low": low, "high": high}


def scores_of(recipe, split: str, key: str) -> np.ndarray:
    """A system's scores of the pairs of a split, `[pairs]`."""
    sounds, texts = recipe.corpus.sounds(split), [pair.text for pair in recipe.corpus.pairs(split)]
    if key == "teacher":
        return clap_scores(ClapEncoder.from_pretrained(recipe.folder("teacher")), sounds, texts)
    if key == "stage1":
        captions = written_captions(recipe, split)
        sentences = ClapSentences(ClapEncoder.from_pretrained(recipe.folder("clap")))
        return caption_scores([captions[sound] for sound in sounds], texts, sentences)
    if key == "audio_blind":
        sounds = [recipe.tables / "silence.wav"] * len(texts)
    if key == "caption_blind":
        texts = [BLIND_CAPTION] * len(sounds)
    return Scorer.from_pretrained(recipe.folder(key)).score(sounds, texts)


@cache
def written_captions(recipe, split: str) -> dict[Path, str]:
    """What stage 1 writes about each sound of a split."""
    sounds = list(dict.fromkeys(recipe.corpus.sounds(split)))
    return dict(zip(sounds, generate_captions(*load_captioner(recipe.folder("stage1")), sounds), strict=True))


@torch.inference_mode()
def clap_scores(clap: ClapEncoder, sounds: list[Path], texts: list[str]) -> np.ndarray:
    """Cosines of sounds and texts on the scale of ratings, `[pairs]`."""
    audio = {sound: clap.embed_audio([clap.load(sound)])[0] for sound in dict.fromkeys(sounds)}
    text = {caption: clap.embed_text([caption])[0] for caption in dict.fromkeys(texts)}
    return 5 + 5 * np.array([float(audio[sound] @ text[caption]) for sound, caption in zip(sounds, texts, strict=True)])


class ClapSentences:
    """
    The text encoder of a CLAP that has seen captions and no rating, in place of a sentence model, which would be a download;
    see [`caption_scores`].
    """

    def __init__(self, clap: ClapEncoder):
        self.clap = clap

    @torch.inference_mode()
    def encode(self, texts: list[str], **_) -> np.ndarray:
        return self.clap.embed_text([text or "." for text in texts]).numpy()
