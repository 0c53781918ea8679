"""Pairs of a table -> batches of model inputs."""

import torch

from xacle.audio_xacle import load_waveform
from xacle.processing_xacle import XacleProcessor
from xacle.scoring.scorer import STATIC_LENGTHS
from xacle.train.data import PairTable
from xacle.train.feature_cache import ClipFeatures, compute_features

INPUT_NAMES = {"fbank": "input_features", "audio_states": "audio_states"}


class PairDataset(torch.utils.data.Dataset):
    """
    The pairs of a table: `{"clip": index, "text": caption, "label": 0-10 (not for captions)}` and the clip's cached features,
    under the name the model knows them by, or its `audio`.
    """

    def __init__(self, table: PairTable, features: ClipFeatures | None = None):
        self.table, self.features = table, features

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict:
        table = self.table
        clip = int(table.clip_index[index])
        example = {"clip": clip, "text": table.captions[table.caption_index[index]]}
        if table.labels is not None:
            example["label"] = float(table.labels[index])
        if self.features is None:
            example["audio"] = table.audio[clip]
        else:
            example[INPUT_NAMES[self.features.kind]] = self.features[clip]
        return example


class PairCollator:
    """
    Examples of a [`PairDataset`] -> the inputs of a Xacle model, with `labels`. A clip that occurs in several pairs of the
    batch is decoded and encoded once.

    Args:
        task: `"scoring"` (labels are ratings) or `"captioning"` (labels are the caption's tokens).
        static_shapes: For a compiled model: rows are padded to a few lengths, and there are as many clips as rows (the last
            one is repeated), so that batches of one size rarely make it compile anew. Results stay the same.
    """

    def __init__(self, processor: XacleProcessor, task: str = "scoring", static_shapes: bool = False):
        self.processor, self.task, self.static_shapes = processor, task, static_shapes

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        multiple = STATIC_LENGTHS if self.static_shapes else 1
        captions = [example["text"] for example in examples]
        inputs = dict(self.processor(text=captions, task=self.task, pad_to_multiple_of=multiple))
        if self.task == "scoring":
            inputs["labels"] = torch.tensor([example["label"] for example in examples])
        first = {}  # the first example of each clip
        for example in examples:
            first.setdefault(example["clip"], example)
        number = {clip: index for index, clip in enumerate(first)}
        inputs["audio_index"] = torch.tensor([number[example["clip"]] for example in examples])
        clips = list(first.values())
        if self.static_shapes:
            clips += clips[-1:] * (len(examples) - len(clips))
        if "audio" in clips[0]:
            waveforms = [load_waveform(clip["audio"]) for clip in clips]
            inputs["input_features"] = compute_features("fbank", waveforms, self.processor)
        else:
            name = next(name for name in INPUT_NAMES.values() if name in clips[0])
            inputs[name] = torch.stack([clip[name] for clip in clips])
        return inputs
