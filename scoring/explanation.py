"""`xacle explain`: which words and which seconds a score rests on, by taking each away and scoring again (occlusion)."""

import math
import re
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from textwrap import fill

import numpy as np
import torch

from xacle.audio_xacle import MIN_SAMPLES, SAMPLING_RATE, fbank
from xacle.core.clips import with_rate
from xacle.scoring.plots import save_plot
from xacle.scoring.scorer import Scorer

BETWEEN_PHRASES = re.compile(r"(\s*,\s*(?:and\s+)?|\s+and\s+)", flags=re.IGNORECASE)
BAR_WIDTH = 20  # characters
DRAWN_RANGE = 12.0  # of log energy below the loudest
SPEAKS_FOR, SPEAKS_AGAINST = "C0", "C1"  # colors of the plot


@dataclass
class Occlusion:
    """
    A part of a caption or of a sound, and the score without it.

    Args:
        part: The word or phrase that was dropped, or the span of time that was silenced.
        score: The pair's score without it.
        change: `score` minus the score with it: negative where the part speaks for the match.
        seconds: Start and end of a span of time; `None` for words and phrases.
    """

    part: str
    score: float
    change: float
    seconds: tuple[float, float] | None = None


@dataclass
class Explanation:
    """What [`explain`] finds: a pair's score, and the score without each word, phrase (if there are several) and segment."""

    text: str
    score: float
    words: list[Occlusion]
    phrases: list[Occlusion]
    segments: list[Occlusion]
    waveform: np.ndarray = field(repr=False)  # [samples] at 16 kHz

    @property
    def largest_change(self) -> float:
        return max(abs(occlusion.change) for occlusion in self.words + self.phrases + self.segments)

    @property
    def undivided(self) -> str | None:
        """Why no words, or no phrases, were dropped; `None` if both were."""
        if not self.words:
            return "no word to drop: the caption has one, words being what spaces separate"
        return None if self.phrases else 'no phrase to drop: the caption has one, phrases being what commas and "and" separate'

    def __str__(self) -> str:
        lines = [f"score {self.score:.3f}: {self.text}"]
        largest = self.largest_change
        for title, occlusions in (
            ("without the word", self.words),
            ("without the phrase", self.phrases),
            ("with silence at", self.segments),
        ):
            if occlusions:
                width = max(len(title), *(len(occlusion.part) for occlusion in occlusions))
                lines.append(f"\n{title:<{width}}    score   change")
                for o in occlusions:
                    bar = ("-" if o.change < 0 else "+") * round(BAR_WIDTH * abs(o.change) / (largest or 1.0))
                    lines.append(f"{o.part:<{width}}  {o.score:7.3f}  {o.change:+7.3f}  {bar}".rstrip())
        if self.undivided is not None:
            lines.append(f"\n{self.undivided}")
        return "\n".join(lines)


def explain(
    scorer: Scorer, audio, text: str, segment: float = 1.0, batch_size: int | str = "auto", window: str = "mean"
) -> Explanation:
    """Occlude each word, each phrase and each stretch of the sound in turn.

    Args:
        audio: A sound, as [`load_waveform`] takes it; arrays at 16 kHz. The time it takes grows with the square of its length.
        text: Its caption. Words are what spaces separate; phrases what commas and "and" do.
        segment: Length of the stretches that are silenced, in seconds; the last may be shorter.
        batch_size, window: See [`Scorer.score`].

    Raises:
        ValueError: if the caption is empty, or segments are shorter than a patch of BEATs (0.175 s).
        The errors of [`load_waveform`].
    """
    if not text.strip():
        raise ValueError("the caption is empty")
    if not MIN_SAMPLES / SAMPLING_RATE <= segment < math.inf:
        raise ValueError(f"segments must be at least {MIN_SAMPLES / SAMPLING_RATE} s long, got {segment}")
    extractor = scorer.processor.feature_extractor
    waveform = extractor.fetch_audio(with_rate(audio))
    if window == "first":
        waveform = waveform[: extractor.max_samples]
    words, phrases, spans = without_each_word(text), without_each_phrase(text), spans_of(len(waveform), segment)
    texts = [text, *(shortened for _, shortened in words + phrases)]
    pairs = chain(((waveform, t) for t in texts), ((silenced(waveform, *span), text) for span in spans))
    results = list(scorer.score_each(pairs, batch_size, window))
    for result in results:
        if result.error is not None:
            raise result.error
    scores = [result.score for result in results]

    score, later = scores[0], iter(scores[1:])
    dropped = [[Occlusion(part, new := next(later), new - score) for part, _ in kind] for kind in (words, phrases)]
    segments = []
    for start, stop in spans:
        seconds = start / SAMPLING_RATE, stop / SAMPLING_RATE
        label = f"{seconds[0]:.1f}-{seconds[1]:.1f} s"
        segments.append(Occlusion(label, new := next(later), new - score, seconds))
    return Explanation(text, score, *dropped, segments, waveform)


# --- Taking parts away ---------------------------------------------------------------------------------------------------


def without_each_word(text: str) -> list[tuple[str, str]]:
    """A caption -> its words, each with the caption that lacks it; none if there is only one word."""
    words = text.split()
    if len(words) == 1:
        return []
    return [(word, _like(text, " ".join(words[:place] + words[place + 1 :]))) for place, word in enumerate(words)]


def without_each_phrase(text: str) -> list[tuple[str, str]]:
    """A caption -> its phrases, each with the caption that lacks it and the comma or "and" before it; none if only one."""
    pieces = BETWEEN_PHRASES.split(text.strip())  # phrase, separator, phrase, ...
    if len(pieces) == 1 or not all(pieces[::2]):
        return []
    shortened = []
    for place in range(0, len(pieces), 2):
        cut = slice(0, 2) if place == 0 else slice(place - 1, place + 1)
        left = [*pieces]
        del left[cut]
        shortened.append((pieces[place], _like(text, "".join(left))))
    return shortened


def _like(text: str, shortened: str) -> str:
    """With a capital first letter if `text` has one: that it went with the first word is not what is asked about."""
    return shortened[0].upper() + shortened[1:] if text.strip()[0].isupper() else shortened


def spans_of(samples: int, segment: float) -> list[tuple[int, int]]:
    """First and last sample (exclusive) of consecutive stretches of `segment` seconds."""
    length = int(segment * SAMPLING_RATE)
    return [(start, min(start + length, samples)) for start in range(0, samples, length)]


def silenced(waveform: np.ndarray, start: int, stop: int) -> np.ndarray:
    """A copy of `[samples]` with zeros, which is also what short clips are padded with, between two samples."""
    waveform = waveform.copy()
    waveform[start:stop] = 0.0
    return waveform


# --- Picture -------------------------------------------------------------------------------------------------------------


def explanation_plot(output: Path, explanation: Explanation) -> None:
    """Spectrogram with the segments' changes below it, and the words' changes (png, pdf, svg). Needs matplotlib.

    All changes are drawn to the same scale.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    waveform, kinds = explanation.waveform, [kind for kind in (explanation.words, explanation.phrases) if kind]
    heights = [3, 1.5, *(0.3 + 0.3 * len(kind) for kind in kinds)]
    figure = Figure(figsize=(9, 1.3 + sum(heights)), layout="constrained")
    figure.suptitle(fill(f"{explanation.score:.2f}: {explanation.text}", 80), parse_math=False)
    colors = {"the score falls without it: it speaks for the match": SPEAKS_FOR, "rises: it speaks against": SPEAKS_AGAINST}
    legend = [Patch(color=color, label=label) for label, color in colors.items()]
    figure.legend(handles=legend, loc="outside lower center", ncols=2, frameon=False)
    limit = 1.1 * explanation.largest_change or 1.0
    sound, seconds, *captions = figure.subplots(len(heights), 1, height_ratios=heights)

    length = len(waveform) / SAMPLING_RATE
    picture = fbank(torch.from_numpy(np.pad(waveform, (0, max(0, MIN_SAMPLES - len(waveform)))))[None])[0].T.numpy()
    loudest = picture.max()
    extent = (0, length, 0, len(picture))
    sound.imshow(picture, origin="lower", aspect="auto", extent=extent, vmin=loudest - DRAWN_RANGE, vmax=loudest)
    sound.set(xlim=(0, length), xticklabels=[], ylabel="mel bin")

    starts, stops = np.array([segment.seconds for segment in explanation.segments]).T
    changes = [segment.change for segment in explanation.segments]
    seconds.bar(starts, changes, stops - starts, align="edge", color=_colors(changes), edgecolor="white")
    seconds.axhline(0, color="0.3", linewidth=1)
    seconds.set(xlim=(0, length), ylim=(-limit, limit), xlabel="seconds", ylabel="change of the score\nif silenced")
    if not explanation.words:
        seconds.set_title(explanation.undivided, fontsize="small")

    for axes, kind in zip(captions, kinds, strict=True):
        changes = [occlusion.change for occlusion in kind]
        axes.barh(range(len(kind)), changes, color=_colors(changes))
        axes.axvline(0, color="0.3", linewidth=1)
        axes.set_yticks(range(len(kind)), [fill(occlusion.part, 40) for occlusion in kind], parse_math=False)
        axes.set(xlim=(-limit, limit), ylim=(len(kind) - 0.4, -0.6))
        axes.set_xlabel(f"change of the score if the {'word' if kind is explanation.words else 'phrase'} is dropped")
    save_plot(figure, output)


def _colors(changes: list[float]) -> list[str]:
    return [SPEAKS_FOR if change < 0 else SPEAKS_AGAINST for change in changes]
