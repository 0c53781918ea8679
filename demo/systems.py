"""The systems that the demo compares, their scores, and the rows of its table."""

from dataclasses import dataclass
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


def score_systems(recipe, folder: Path) -> dict:
    """Write each system's scores as `<split>_<key>.csv`; returns the rows of the table and captions that stage 1 writes."""
    folder.mkdir()
    captioner = load_captioner(recipe.folder("stage1"))
    captions = {split: generate_captions(*captioner, recipe.corpus.sounds(split)) for split in SCORED}
    for split in SCORED:
        for key, scores in scores_of(recipe, split, captions[split]).items():
            pairs = recipe.corpus.pairs(split)
            rows = [(pair.wav_file_name, pair.text, score) for pair, score in zip(pairs, scores, strict=True)]
            write_scores(folder / f"{split}_{key}.csv", rows, with_text=True)
        ensemble([folder / f"{split}_{key}.csv" for key in ENSEMBLE], folder / f"{split}_ensemble.csv")
    table = [vars(system) | {split: srcc(recipe, folder, system.key, split) for split in SCORED} for system in SYSTEMS]
    true_captions = recipe.corpus.true_captions()
    written = dict(zip((pair.wav_file_name for pair in recipe.corpus.pairs("test")), captions["test"], strict=True))
    examples = [
        {"wav_file_name": name, "written": caption, "true": true_captions.get(name)}
        for name, caption in list(written.items())[:EXAMPLE_CAPTIONS]
    ]
    return {"table": table, "captions": examples}


def srcc(recipe, folder: Path, key: str, split: str) -> dict[str, float]:
    """The SRCC of a system's scores with the ratings: `value`, and the `low` and `high` ends of its 95 % interval."""
    found = evaluate(folder / f"{split}_{key}.csv", recipe.corpus.table(split), resamples=0)
    low, high = bootstrap_intervals(found.predictions, found.ratings, names=("SRCC",))["SRCC"]
    return {"value": found.metrics["SRCC"], "low": low, "high": high}


def scores_of(recipe, split: str, captions: list[str]) -> dict[str, np.ndarray]:
    """Each system's scores of the pairs of a split, `[pairs]` each."""
    sounds, texts = recipe.corpus.sounds(split), [pair.text for pair in recipe.corpus.pairs(split)]
    silence, same = [recipe.tables / "silence.wav"] * len(sounds), [BLIND_CAPTION] * len(sounds)
    inputs = {"audio_blind": (silence, texts), "caption_blind": (sounds, same)}
    scores = {
        key: Scorer.from_pretrained(recipe.folder(key)).score(*inputs.get(key, (sounds, texts)))
        for key in ("untrained", "stage12", "stage3", "stage23", "stage123", "audio_blind", "caption_blind")
    }
    teacher = ClapEncoder.from_pretrained(recipe.folder("teacher"))
    with torch.inference_mode():
        cosines = [teacher.similarity([teacher.load(sound)], [text]) for sound, text in zip(sounds, texts, strict=True)]
    scores["teacher"] = 5 + 5 * torch.cat(cosines).numpy()
    scores["stage1"] = caption_scores(captions, texts, TeacherSentences(teacher))
    return scores


class TeacherSentences:
    """The teacher's text encoder in place of a sentence model, which would be a download; see [`caption_scores`]."""

    def __init__(self, teacher: ClapEncoder):
        self.teacher = teacher

    @torch.inference_mode()
    def encode(self, texts: list[str], **_) -> np.ndarray:
        return self.teacher.embed_text([text or "." for text in texts]).numpy()
