"""The demo's audio encoder: a BEATs some hundred times smaller than the original, trained to classify events.

In the paper it is a download: BEATs trained on AudioSet.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from xacle.audio_xacle import SAMPLING_RATE
from xacle.configuration_xacle import BeatsConfig
from xacle.core.columns import EVENT_COLUMNS, FILE_COLUMNS, column_of
from xacle.core.tables import name_of, read_rows
from xacle.demo.corpus import Corpus
from xacle.modeling_beats import BeatsForAudioClassification
from xacle.processing_xacle import XacleFeatureExtractor
from xacle.soundscapes.random_numbers import pick

BATCH_SIZE = 32
CROP_FRAMES = 320  # 3.2 s, a third of a clip: cheaper, and never the same twice
MIX_AFTER = 0.3  # of the steps; before, crops are not mixed
AUDIBLE_DB = 25  # below the loudest frame
LEARNING_RATE = 1.5e-3


@dataclass
class LabeledClips:
    """Clips to learn event classes from: `fbank` `[clips, 998, 128]` and `labels` `[clips, classes]` of zeros and ones."""

    fbank: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]


def fbank_of(sound) -> torch.Tensor:
    """The scorer's normalized fbank `[998, 128]` of a sound: a path, or a waveform at 16 kHz."""
    extractor = XacleFeatureExtractor()
    return extractor(sound, sampling_rate=SAMPLING_RATE, return_tensors="pt")["input_features"][0]


def read_events(corpus: Corpus) -> tuple[LabeledClips, LabeledClips | None]:
    """
    Read the clips of events.csv: those to train on, and those of its split "test", if there are any.

    Its columns are `wav_file_name` (below `wav/`), `labels` (one or several, separated by ";") and optionally `split`.

    Raises:
        FileNotFoundError, ValueError: if the table or a sound is missing or cannot be read.
    """
    table = corpus.folder / "events.csv"
    rows = read_rows(table)
    file_column, label_column = column_of(rows, FILE_COLUMNS, table), column_of(rows, EVENT_COLUMNS, table)
    parts = {"train": [], "test": []}
    for line, row in rows:
        labels = {label.strip() for label in (row[label_column] or "").split(";") if label.strip()}
        parts["test" if row.get("split") == "test" else "train"].append((name_of(row, file_column, table, line), labels))
    if not parts["train"]:
        raise ValueError(f"'{table}' has no rows to train on")
    classes = tuple(sorted({label for part in parts.values() for _, labels in part for label in labels}))

    def load(part: list[tuple[str, set[str]]]) -> LabeledClips:
        fbanks = [fbank_of(str(corpus.folder / "wav" / name)) for name, _ in tqdm(part, desc="events", unit="clip")]
        labels = [[float(name in labels) for name in classes] for _, labels in part]
        return LabeledClips(torch.stack(fbanks), torch.tensor(labels), classes)

    return load(parts["train"]), load(parts["test"]) if parts["test"] else None


def small_beats_config(classes: int) -> BeatsConfig:
    """Patches of 32 mel bins x 320 ms, 124 tokens in 10 s."""
    return BeatsConfig(
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        patch_size=32,
        patch_embed_dim=64,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=4,
        layerdrop=0.0,
        num_labels=classes,
    )


def audible_frames(fbank: torch.Tensor, nepers: float) -> list[np.ndarray]:
    """The frames of each clip within 25 dB of its loudest and above its quietest 30 %; all frames of a silent clip."""
    energy = fbank.mean(dim=2)  # [clips, frames]
    audible = energy > energy.amax(dim=1, keepdim=True) - AUDIBLE_DB / 10 * np.log(10) / nepers
    audible &= energy > energy.quantile(0.3, dim=1, keepdim=True)
    return [np.flatnonzero(frames if frames.any() else ~frames) for frames in audible.numpy()]


def train_encoder(clips: LabeledClips, steps: int, seed: int, rng: np.random.Generator) -> BeatsForAudioClassification:
    """
    Train a small BEATs with one output per class.

    Args:
        steps: Optimizer steps, of 32 crops of 3.2 s; in most of them half the crops are mixtures of two clips.
        seed: Of the weights.
        rng: Of the crops.
    """
    torch.manual_seed(seed)
    nepers = 2 * XacleFeatureExtractor().fbank_std  # a unit of the normalized fbank, in nepers of power
    audible = audible_frames(clips.fbank, nepers)

    def crops(chosen: np.ndarray) -> torch.Tensor:
        """A stretch with something audible of each clip, at a level of its own: `[chosen, CROP_FRAMES, 128]`."""
        rows = []
        for clip in chosen:
            frame = pick(rng, audible[clip])
            start = int(np.clip(frame - rng.integers(CROP_FRAMES), 0, clips.fbank.shape[1] - CROP_FRAMES))
            rows.append(clips.fbank[clip, start : start + CROP_FRAMES] + 0.1 * rng.standard_normal())
        return torch.stack(rows)

    model = BeatsForAudioClassification(small_beats_config(len(clips.classes)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for step in tqdm(range(steps), desc="BEATs", unit="step"):
        chosen = rng.integers(len(clips.fbank), size=BATCH_SIZE)
        batch, target = crops(chosen), clips.labels[chosen]
        if step >= MIX_AFTER * steps:
            half = BATCH_SIZE // 2
            others = rng.integers(len(clips.fbank), size=half)
            # Powers add up, and the fbank is their logarithm; its constant offset does not matter here.
            batch[:half] = torch.logaddexp(nepers * batch[:half], nepers * crops(others)) / nepers
            target[:half] = torch.maximum(target[:half], clips.labels[others])
        loss = F.binary_cross_entropy_with_logits(model(input_features=batch).logits, target) * len(clips.classes)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def share_found(model: BeatsForAudioClassification, clips: LabeledClips) -> float:
    """The share of labels that the classifier finds, 0-1: of each clip, as many classes are predicted as it has labels.

    Only classes that some clip has are candidates.
    """
    candidates = clips.labels.any(dim=0)
    found = 0.0
    for fbank, labels in zip(clips.fbank, clips.labels[:, candidates], strict=True):
        logits = model(input_features=fbank[None]).logits[0, candidates]
        found += labels[logits.topk(int(labels.sum())).indices].sum().item()
    return found / clips.labels.sum().item()
