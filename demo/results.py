"""What the systems of the demo score, and the rows of its table."""

from pathlib import Path

import numpy as np
import torch

from xacle.clap.encoder import ClapEncoder
from xacle.core.tables import write_scores
from xacle.demo.report import heard_scenes
from xacle.scoring.captions import caption_scores, generate_captions, load_captioner
from xacle.scoring.ensemble import ensemble
from xacle.scoring.evaluation import evaluate
from xacle.scoring.metrics import bootstrap_intervals
from xacle.scoring.scorer import Scorer
from xacle.soundscapes.scenes import describe, generator

SCORED = ("validation", "test")
BLIND_CAPTION = "A sound"
EXAMPLE_CAPTIONS = 5
ENSEMBLE = ("stage123", "stage23")

# Rows of the table, in the paper's order, then ours: key, configuration, group, the paper's SRCC on validation and test.
ROWS = (
    ("untrained", "Untrained, but for the encoder", "untrained", None, None),
    ("stage1", "Stage 1 only", "system", 0.352, None),
    ("stage12", "Stages 1+2", "system", 0.598, None),
    ("stage3", "Stage 3 only", "system", 0.574, None),
    ("stage23", "Stages 2+3", "system", 0.669, 0.626),
    ("stage123", "Stages 1+2+3 (full pipeline)", "system", 0.674, 0.625),
    ("teacher", "Teacher: CLAP tuned on ratings", "teacher", 0.602, None),
    ("ensemble", "Ensemble of 1+2+3 and 2+3", "ensemble", 0.678, 0.632),
    ("audio_blind", "Control: stages 1+2+3 without sound", "control", None, None),
    ("caption_blind", "Control: stages 1+2+3 without caption", "control", None, None),
)


def score_systems(recipe, folder: Path) -> dict:
    """Write each system's scores as `<split>_<key>.csv`; returns the rows of the table and what stage 1 writes."""
    folder.mkdir()
    captioner = load_captioner(recipe.folder("stage1"))
    captions = {split: generate_captions(*captioner, recipe.sounds(split)) for split in SCORED}
    for split in SCORED:
        for key, scores in scores_of(recipe, split, captions[split]).items():
            rows = zip(recipe.rows(f"{split}_average"), scores, strict=True)
            write_scores(folder / f"{split}_{key}.csv", ((row["wav_file_name"], row["text"], score) for row, score in rows))
        ensemble([folder / f"{split}_{key}.csv" for key in ENSEMBLE], folder / f"{split}_ensemble.csv")
    table = []
    for key, configuration, group, paper_validation, paper_test in ROWS:
        row = {"key": key, "configuration": configuration, "group": group}
        row |= {"paper_validation": paper_validation, "paper_test": paper_test}
        for split in SCORED:
            predictions, ratings = folder / f"{split}_{key}.csv", recipe.corpus / f"meta_data/{split}_average.csv"
            found = evaluate(predictions, ratings, resamples=0)
            low, high = bootstrap_intervals(found.predictions, found.ratings, names=("SRCC",))["SRCC"]
            row[split] = {"value": found.metrics["SRCC"], "low": low, "high": high}
        table.append(row)
    heard = heard_scenes(recipe.corpus)
    examples = [
        {"wav_file_name": name, "written": caption, "true": describe(scene, generator(0))}
        for (name, scene), caption in list(zip(heard.items(), captions["test"], strict=True))[:EXAMPLE_CAPTIONS]
    ]
    return {"table": table, "captions": examples}


def scores_of(recipe, split: str, captions: list[str]) -> dict[str, np.ndarray]:
    """What each system says about the pairs of a split, `[pairs]` each."""
    sounds, texts = recipe.sounds(split), [row["text"] for row in recipe.rows(f"{split}_average")]
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
    """The teacher's text tower in the place of a sentence model, which would be a download; see [`caption_scores`]."""

    def __init__(self, teacher: ClapEncoder):
        self.teacher = teacher

    @torch.inference_mode()
    def encode(self, texts: list[str], **_) -> np.ndarray:
        return self.teacher.embed_text([text or "." for text in texts]).numpy()
