"""How well sounds match captions, on the scale people rate on (0-10): a measurement over a column of each."""

import os

import datasets
import evaluate
import numpy as np

from xacle.audio_xacle import load_waveform
from xacle.core.clips import with_rate
from xacle.scoring import load_scorer

DESCRIPTION = "How well sounds match captions, by a model trained on human ratings of such pairs. Needs no reference sounds."

INPUTS = """
Args:
    audio (list): Sounds: paths, URLs, bytes, the audio dicts of datasets, or arrays and tensors at 16 kHz, [samples] or
        [channels, samples]; those of other rates as {"array": ..., "sampling_rate": ...}.
    text (list of str): A caption for each.
    model (str): Folder or Hub id of the scorer, if evaluate.load was given none or another shall be used. It may be any CLAP;
        its scores are cosines.
    batch_size (int or "auto"): Windows of 10 s scored at once.
    window (str): "mean" averages the 10 s windows of longer clips, "first" scores the first only.
Returns:
    scores: A score a pair, in order. mean_score: Their mean.
"""


class XacleScore(evaluate.Measurement):
    """See `INPUTS`. `config_name` is the model: `evaluate.load("./metrics/xacle_score", "folder-or-hub-id", device="cuda")`.

    Raises:
        ValueError: if there is no model, there are not as many sounds as captions, or pairs cannot be scored (all are listed).
    """

    def __init__(self, config_name=None, device=None, dtype="float32", **kwargs):
        super().__init__(**kwargs)  # without the name: evaluate would make a folder of it in its cache
        self.device, self.dtype = device, dtype
        self.model, self.scorer = None, None
        if config_name is not None:
            self._load(config_name)

    def _load(self, model):
        if model != self.model:
            self.model, self.scorer = model, load_scorer(model, self.device, self.dtype)

    def _info(self):
        # Arrow would take an array for a list of numbers: slow, and blind to the integers' range and the rate.
        features = {
            "audio": {"path": datasets.Value("string"), "waveform": datasets.Value("large_binary")},
            "text": datasets.Value("string"),
        }
        return evaluate.MeasurementInfo(
            description=DESCRIPTION, citation="", inputs_description=INPUTS, features=datasets.Features(features)
        )

    def add(self, *, audio=None, text=None):
        """Add one pair; the model and its options are `compute`'s."""
        self.add_batch(audio=[audio], text=[text])

    def add_batch(self, *, audio=None, text=None):
        """Add pairs; the model and its options are `compute`'s."""
        if any(column is None or isinstance(column, str) for column in (audio, text)):
            raise ValueError(f"pass a list of sounds (audio) and a list of captions (text), got {audio!r:.80} and {text!r:.80}")
        if len(audio) != len(text):
            raise ValueError(f"pass as many captions (text) as sounds (audio), got {len(text)} for {len(audio)}")
        stored = []
        for number, (sound, caption) in enumerate(zip(audio, text, strict=True)):
            try:
                if not isinstance(caption, str):
                    raise TypeError(f"its caption must be a text, got {caption!r:.80}")
                stored.append(_stored(sound))
            except (OSError, ValueError, TypeError) as error:
                raise ValueError(f"pair {number} of the batch: {error}") from error
        super().add_batch(audio=stored, text=list(text))

    def _compute(self, audio, text, model=None, batch_size="auto", window="mean"):
        if model is not None:
            self._load(model)
        if self.scorer is None:
            raise ValueError('which model? evaluate.load("./metrics/xacle_score", "folder-or-hub-id"), or compute(model=...)')
        pairs = zip(map(_restored, audio), text, strict=True)
        results = list(self.scorer.score_each(pairs, batch_size, window))
        if failed := [f"pair {number}: {result.error}" for number, result in enumerate(results) if result.error is not None]:
            raise ValueError("\n".join([f"pairs that cannot be scored: {len(failed)} of {len(results)}", *failed]))
        scores = [float(result.score) for result in results]
        return {"scores": scores, "mean_score": float(np.mean(scores))}


def _stored(sound):
    """A sound as Arrow keeps it: a path or URL as it is, anything else as float32 samples at 16 kHz."""
    if isinstance(sound, dict) and sound.get("array") is None and sound.get("bytes") is None:
        sound = sound.get("path")
    if isinstance(sound, (str, os.PathLike)):
        return {"path": os.fspath(sound), "waveform": b""}
    # Not by a model's feature extractor: there may be no model before `compute`.
    return {"path": "", "waveform": load_waveform(with_rate(sound)).tobytes()}


def _restored(stored):
    return stored["path"] or np.frombuffer(stored["waveform"], dtype=np.float32)
