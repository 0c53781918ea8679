"""Tables -> datasets of pairs, with cached features -> batches of model inputs."""

from collections.abc import Callable
from pathlib import Path

import torch

from xacle.core.tables import TableError
from xacle.processing_xacle import XacleProcessor
from xacle.scoring.scorer import STATIC_LENGTHS
from xacle.train.arguments import DataArguments, TrainingArguments
from xacle.train.clip_features import ClipFeatures, UndecodableClipsError, cache_features, check_decodable, compute_features
from xacle.train.data import PairTable, write_rejected

INPUT_NAMES = {"fbank": "input_features", "audio_states": "audio_states"}


class PairDataset(torch.utils.data.Dataset):
    """
    The pairs of a table: `{"clip": index, "text": caption, "score": 0-10 (not for captions)}` and the clip's cached features,
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
            example["score"] = float(table.labels[index])
        if self.features is None:
            example["audio"] = table.audio[clip]
        else:
            example[INPUT_NAMES[self.features.kind]] = self.features[clip]
        return example


class PairCollator:
    """
    Examples -> the inputs of a Xacle model, with `labels`. A clip that occurs in several pairs of the batch is decoded and
    encoded once.

    Args:
        task: `"scoring"` (labels are ratings) or `"captioning"` (labels are the caption's tokens).
        static_shapes: For a compiled model: rows are padded to a few lengths, and there are as many clips as rows (the last
            one is repeated), so that batches of one size rarely make it compile anew. Results stay the same.

    Examples are those of a [`PairDataset`], or dicts with `audio` (a path, or whatever else [`load_waveform`] takes), `text`
    and, for scoring, `score` on the 0-10 scale.
    """

    def __init__(self, processor: XacleProcessor, task: str = "scoring", static_shapes: bool = False):
        self.processor, self.task, self.static_shapes = processor, task, static_shapes

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        multiple = STATIC_LENGTHS if self.static_shapes else 1
        captions = [example["text"] for example in examples]
        inputs = dict(self.processor(text=captions, task=self.task, pad_to_multiple_of=multiple))
        if self.task == "scoring":
            inputs["labels"] = torch.tensor([float(example["score"]) for example in examples])
        clips, inputs["audio_index"] = distinct_clips(examples)
        if self.static_shapes:
            clips += clips[-1:] * (len(examples) - len(clips))
        if "audio" in clips[0]:
            waveforms = self.processor.feature_extractor.fetch_audio([clip["audio"] for clip in clips])
            inputs["input_features"] = compute_features("fbank", waveforms, self.processor)
        else:
            name = next(name for name in INPUT_NAMES.values() if name in clips[0])
            inputs[name] = torch.stack([clip[name] for clip in clips])
        return inputs


def distinct_clips(examples: list[dict]) -> tuple[list[dict], torch.Tensor]:
    """The first example of each clip, and for each example, which of them has its clip: `[examples]`."""
    first: dict[object, dict] = {}
    clips = []
    for place, example in enumerate(examples):
        clip = example.get("clip")
        if clip is None:  # no table's: a file is known by its path
            clip = example["audio"] if isinstance(example["audio"], (str, Path)) else ("sound", place)
        first.setdefault(clip, example)
        clips.append(clip)
    number = {clip: index for index, clip in enumerate(first)}
    return list(first.values()), torch.tensor([number[clip] for clip in clips])


def prepare_datasets(
    tables: dict[str, PairTable], model, processor: XacleProcessor, data: DataArguments, training: TrainingArguments
) -> dict[str, PairDataset]:
    """Tables by their role -> datasets, with features from the cache. What the cache lacks is computed now.

    A frozen encoder's outputs are cached, or its fbank if the encoder is trained or (in training) its input is masked. See
    [`decodable_datasets`] for clips that cannot be decoded.
    """
    frozen = model.config.freeze_audio_encoder
    masked = model.config.freq_mask_width or model.config.time_mask_width

    def cached(role: str, audio: dict) -> ClipFeatures:
        kind = "audio_states" if frozen and not (masked and role == "train") else "fbank"
        if kind == "audio_states":
            model.to(training.device)
        options = {"dtype": data.feature_cache_dtype, "num_workers": training.dataloader_num_workers, "share": training.share}
        return cache_features(kind, audio, processor, Path(data.feature_cache), model, **options)

    if data.feature_cache == "none":
        return decodable_datasets(tables, data, training, load=processor.feature_extractor.fetch_audio)
    return decodable_datasets(tables, data, training, features=cached)


def decodable_datasets(
    tables: dict[str, PairTable],
    data: DataArguments,
    training: TrainingArguments,
    load: Callable | None = None,
    features: Callable[[str, dict], ClipFeatures] | None = None,
) -> dict[str, PairDataset]:
    """Tables by their role -> datasets, without the pairs of clips that cannot be decoded.

    Args:
        load: How a sound is loaded in training; each is now, once.
        features: Instead of it, role and clips -> their features.

    Raises:
        TableError: naming every clip that cannot be decoded, unless `data.on_error` is "skip", or if no other is left.
    """

    def checked(role: str, table: PairTable) -> ClipFeatures | None:
        if features is not None:
            return features(role, table.used_audio)
        return check_decodable(table.used_audio, load, training.dataloader_num_workers, training.share)

    datasets = {}
    for role, table in tables.items():
        try:
            found = checked(role, table)
        except UndecodableClipsError as error:
            table = table.without_clips(error.errors)
            if data.on_error == "stop":
                advice = "nothing was trained; fix them, or leave them out (--on-error skip)"
                raise TableError(table.source, table.problems, advice, use="decoded") from error
            write_rejected(table, training, role)
            if not len(table):
                raise TableError(table.source, table.problems, "no row can be used", use="decoded") from error
            found = None if features is None else features(role, table.used_audio)
        datasets[role] = PairDataset(table, found)
    return datasets
