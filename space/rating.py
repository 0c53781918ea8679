"""A sound and captions -> ratings, by the code in the model's folder: the package xacle need not be installed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoProcessor, PreTrainedConfig

MAX_CAPTIONS = 20
MAX_SECONDS = 600.0  # a window of 10 s takes seconds on a small CPU
MIN_SECONDS = 0.1
FBANK_RATE = 100  # frames a second
SILENCE = 1e-4  # peak, of full scale: -80 dB
TEACHERS = ("clap", "m2d_clap")
UNCALIBRATED = 5.0  # scale and shift of a model that was never calibrated


class InputError(ValueError):
    """What is wrong with a visitor's sound or captions, in words for the page."""


@dataclass
class Rating:
    """One caption's rating, and that of each window."""

    caption: str
    score: float
    windows: list[float]


@dataclass
class Result:
    """
    A sound and its captions, rated.

    Args:
        name: The sound's file name.
        spans: Start and end of each window in seconds.
        ratings: Best first.
        fbank: The model's input, log-mel `[frames, mel bins]`, 100 frames a second.
        notes: Remarks on the ratings, for the page.
    """

    name: str
    spans: list[tuple[float, float]]
    ratings: list[Rating]
    fbank: np.ndarray
    notes: list[str]

    @property
    def seconds(self) -> float:
        return self.spans[-1][1]


def split_captions(text: str | None) -> list[str]:
    """The captions of a text, one a line; empty lines and repetitions are dropped.

    Raises:
        InputError: if there is none, or there are too many.
    """
    captions = list(dict.fromkeys(line.strip() for line in (text or "").splitlines() if line.strip()))
    if not captions:
        raise InputError("Write a caption first: what does the sound contain?")
    if len(captions) > MAX_CAPTIONS:
        raise InputError(f"These are {len(captions)} captions; this page takes up to {MAX_CAPTIONS} at once.")
    return captions


class Rater:
    """
    Rates sounds against captions.

    Args:
        model: Folder or Hub id. Its code is run: name only a model you trust.

    Raises:
        OSError, ValueError: if there is no such model, or it is no scorer.
    """

    def __init__(self, model: str):
        if Path(model).exists() and not (Path(model) / "config.json").is_file():
            raise ValueError("it has no config.json")
        if not Path(model).exists() and model.count("/") != 1:
            raise ValueError("there is no such folder, and a Hub id looks like owner/name")
        model_type = PreTrainedConfig.get_config_dict(model)[0].get("model_type")
        if model_type in TEACHERS:
            raise ValueError(
                "it is a CLAP teacher, which labels training data; this page takes a scorer, as `xacle train ratings` makes"
            )
        if model_type != "xacle":
            raise ValueError(f"it is of type {model_type!r}, not an xacle scorer")
        self.model, loaded = AutoModel.from_pretrained(model, trust_remote_code=True, dtype="float32", output_loading_info=True)
        if loaded["missing_keys"]:
            raise ValueError(f"it lacks the weights {', '.join(sorted(loaded['missing_keys'])[:3])}")
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        self.model.to(device).eval()
        self.processor = AutoProcessor.from_pretrained(model, trust_remote_code=True)

    def rate(self, audio: str | None, text: str | None, progress: Callable[[int, int], None] = lambda done, of: None) -> Result:
        """
        Args:
            audio: Path of the sound.
            text: Captions, one a line.
            progress: Called before each window with its number, from 0, and the number of windows.

        Raises:
            InputError: if the sound or the captions cannot be used.
        """
        if not audio:
            raise InputError("Add a sound first: drop a file, record one, or choose an example.")
        captions, extractor = split_captions(text), self.processor.feature_extractor
        windows = extractor.windows(self._load(Path(audio)))
        scores, fbanks, samples = [], [], [len(window) for window in windows]
        for number, window in enumerate(windows):
            progress(number, len(windows))
            inputs = self.processor(text=captions, audio=window, sampling_rate=extractor.sampling_rate)
            with torch.inference_mode():
                scores.append(self.model(**inputs.to(self.model.device)).scores.float().cpu().numpy())
            frames = max(1, round(FBANK_RATE * len(window) / extractor.sampling_rate))
            fbanks.append(inputs["input_features"][0].cpu().numpy()[:frames])
        by_window = np.stack(scores)  # [windows, captions]
        ratings = [
            Rating(caption, float(mean), column.tolist())
            for caption, mean, column in zip(captions, self._average(by_window, samples), by_window.T, strict=True)
        ]
        ends = (np.cumsum(samples) / extractor.sampling_rate).tolist()
        return Result(
            name=Path(audio).name,
            spans=list(zip([0.0, *ends[:-1]], ends, strict=True)),
            ratings=sorted(ratings, key=lambda rating: -rating.score),
            fbank=np.concatenate(fbanks) * 2 * extractor.fbank_std + extractor.fbank_mean,
            notes=self._notes(captions, by_window, ends[-1]),
        )

    def _average(self, scores: np.ndarray, samples: list[int]) -> np.ndarray:
        """`[windows, captions]` -> `[captions]`: the model's own average over windows of so many samples."""
        extractor = self.processor.feature_extractor
        if hasattr(extractor, "average_windows"):
            return extractor.average_windows(scores, samples)
        return np.average(scores, axis=0, weights=samples)  # models published before they had the method

    def _load(self, audio: Path) -> np.ndarray:
        """A file -> `[samples]` at 16 kHz. Raises `InputError` if it cannot be rated."""
        extractor = self.processor.feature_extractor
        try:
            waveform = extractor.fetch_audio(str(audio))
        except (OSError, ValueError) as error:
            reason = str(error).replace(str(audio), audio.name).replace("`", "")
            raise InputError(f"{reason[0].upper()}{reason[1:]}.") from error
        seconds = len(waveform) / extractor.sampling_rate
        if seconds < MIN_SECONDS:
            raise InputError(f"This sound lasts {seconds:.2f} s, which is too short; at least {MIN_SECONDS} s are needed.")
        if seconds > MAX_SECONDS:
            raise InputError(
                f"This sound lasts {seconds / 60:.1f} minutes; this page takes up to {MAX_SECONDS / 60:.0f}. Cut it, or use "
                "the command xacle score, which takes any length."
            )
        if np.abs(waveform).max() < SILENCE:
            raise InputError("This sound is silent: there is nothing that a caption could match.")
        return waveform

    def _notes(self, captions: list[str], scores: np.ndarray, seconds: float) -> list[str]:
        """`scores`: `[windows, captions]`."""
        notes, config, windows = [], self.model.config, len(scores)
        if windows > 1:
            notes.append(
                f"Longer than 10 s: rated in {windows} windows of 10 s; the rating is their mean, weighted by duration."
            )
        elif seconds < 1:
            notes.append(f"Only {seconds:.1f} s long: it is padded with silence, since the model is made for clips of 10 s.")
        tokens = self.processor.tokenizer(captions, add_special_tokens=False)["input_ids"]
        if any(len(ids) > self.processor.max_caption_tokens for ids in tokens):
            notes.append(f"A caption is too long: only its first {self.processor.max_caption_tokens} tokens count.")
        if config.score_scale == config.score_shift == UNCALIBRATED:
            notes.append("This model is not calibrated to people's ratings: compare its ratings; one alone means little.")
        if scores.min() < 0 or scores.max() > 10:
            notes.append("Ratings are not clipped: beyond 0 or 10, read them as the end of the scale.")
        return notes
