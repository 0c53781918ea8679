"""Ratings -> HTML: gauge, ranking, spectrogram and the windows' ratings over time. Styles are in style.css."""

import base64
import io
import math
from html import escape

import numpy as np
from matplotlib.image import imsave
from transformers.audio_utils import hertz_to_mel

from rating import Rating, Result

MAX_COLUMNS = 1200  # of a spectrogram
FBANK_RANGE = (8.0, 24.0)  # log energy; the same for all sounds, so that a soft one looks soft
LOW_FREQUENCY, HIGH_FREQUENCY = 20.0, 8000.0  # Hz, of the fbank
FREQUENCIES = {250: "250", 1000: "1k", 4000: "4k"}  # Hz, at the spectrogram's side
COLORMAP = "magma"  # of matplotlib; dark is soft
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120)  # seconds between marks of time
MAX_MARKS = 6
MAX_CUT_WINDOWS = 16  # more are too narrow to be cut by lines in the spectrogram
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def number(score: float, decimals: int = 1) -> str:
    return f"{score:.{decimals}f}".replace("-", MINUS)


def share(score: float) -> float:
    """A rating as a share of the scale, 0-1; ratings beyond the scale are drawn at its end."""
    return min(max(score / 10, 0.0), 1.0)


def draw_empty() -> str:
    return f"""
<div class="xr-card xr-empty"><div class="xr-gauge">{gauge(None)}</div>
<p>Add a sound and a caption to see how well they match.</p></div>"""


def draw_problem(message: str) -> str:
    return f'<div class="xr-card xr-problem" role="alert"><strong>That did not work</strong><p>{escape(message)}</p></div>'


def draw_result(result: Result) -> str:
    best, several = result.ratings[0], len(result.ratings) > 1
    notes = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
    return f"""
<section class="xr-card xr-best"><div class="xr-gauge">{gauge(best.score)}</div>
<div><h3>{"Best match" if several else "Rating"}</h3><p class="xr-caption">{escape(best.caption)}</p></div></section>
{ranking(result.ratings) if several else ""}
{over_time(result)}
{f'<ul class="xr-notes">{notes}</ul>' if notes else ""}"""


def gauge(score: float | None) -> str:
    """A half circle from 0 to 10, filled up to the score."""
    arc = 'd="M 20 100 A 80 80 0 0 1 180 100" pathLength="1"'
    value = "" if score is None else f'<path class="xr-value" {arc} stroke-dasharray="{share(score):.4f} 2"/>'
    label = "no rating yet" if score is None else f"{number(score)} on a scale from 0 to 10"
    return f"""
<svg viewBox="0 0 200 124" role="img" aria-label="{label}"><path class="xr-track" {arc}/>{value}
<text class="xr-number" x="100" y="96">{DASH if score is None else number(score)}</text>
<text x="20" y="120">0</text><text x="100" y="120">out of 10</text><text x="180" y="120">10</text></svg>"""


def ranking(ratings: list[Rating]) -> str:
    rows = "".join(
        f'<li><span class="xr-caption">{escape(rating.caption)}</span><span class="xr-score">{number(rating.score, 2)}</span>'
        f'<span class="xr-bar"><i style="width:{100 * share(rating.score):.1f}%"></i></span></li>'
        for rating in ratings
    )
    return f'<section class="xr-card"><h3>Ranking of {len(ratings)} captions</h3><ol class="xr-ranking">{rows}</ol></section>'


def over_time(result: Result) -> str:
    """The spectrogram and, for a long sound, each caption's ratings beneath it on the same axis of time."""
    seconds, unit = result.seconds, _unit(result.seconds)
    marks = "".join(
        f'<span style="left:{100 * mark / seconds:.2f}%">{_clock(mark, seconds)}{"" if mark else unit}</span>'
        for mark in time_marks(seconds)
    )
    cuts = "".join(
        f'<i class="xr-cut" style="left:{100 * start / seconds:.2f}%"></i>'
        for start, _ in result.spans[1:]
        if len(result.spans) <= MAX_CUT_WINDOWS
    )
    side = "".join(f'<span style="bottom:{100 * _height(hertz):.1f}%">{label}</span>' for hertz, label in FREQUENCIES.items())
    windows = "".join(_windows(rating, result) for rating in result.ratings) if len(result.spans) > 1 else ""
    heading = f'<p class="xr-over">Rating of each 10 s, from 0 to 10</p>{windows}' if windows else ""
    return f"""
<section class="xr-card"><h3>{escape(result.name)} <span class="xr-quiet">{_duration(seconds)}</span></h3>
<div class="xr-time"><div class="xr-side" aria-hidden="true">{side}<b>Hz</b></div>
<div class="xr-plot"><div class="xr-picture"><img alt="Spectrogram of the sound" src="{spectrogram(result.fbank)}">{cuts}</div>
<div class="xr-axis" aria-hidden="true">{marks}</div>{heading}</div></div></section>"""


def _windows(rating: Rating, result: Result) -> str:
    """A caption's ratings over time: as bars on the spectrogram's axis, and as text."""
    bars = rows = ""
    for (start, end), score in zip(result.spans, rating.windows, strict=True):
        width, height, rounded = 100 * (end - start) / result.seconds, 100 * share(score), number(score, 2)
        span = f"{_clock(start, result.seconds)}{DASH}{_clock(end, result.seconds)}{_unit(result.seconds)}"
        bars += f'<span style="width:{width:.3f}%" title="{span}: {rounded}"><i style="height:{height:.1f}%"></i></span>'
        rows += f"<li><span>{span}</span> <b>{rounded}</b></li>"
    caption = f'<p class="xr-caption">{escape(rating.caption)}</p>' if len(result.ratings) > 1 else ""
    return f'{caption}<div class="xr-windows" aria-hidden="true">{bars}</div><ol class="xr-numbers" role="list">{rows}</ol>'


def spectrogram(fbank: np.ndarray) -> str:
    """Log-mel `[frames, mel bins]` -> a PNG as a data URI, low frequencies at the bottom."""
    columns = min(len(fbank), MAX_COLUMNS)
    edges = np.linspace(0, len(fbank), columns, endpoint=False).astype(int)
    pooled = np.add.reduceat(fbank, edges) / np.diff([*edges, len(fbank)])[:, None]
    low, high = FBANK_RANGE
    file = io.BytesIO()
    imsave(file, pooled.T, vmin=low, vmax=high, cmap=COLORMAP, origin="lower", format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def time_marks(seconds: float) -> list[float]:
    """At most `MAX_MARKS` round times, from 0 on."""
    step = next((step for step in STEPS if seconds / step < MAX_MARKS), STEPS[-1])
    return [step * index for index in range(math.floor(seconds / step + 1e-6) + 1)]


def _height(hertz: float) -> float:
    """How high a frequency is in the spectrogram, 0-1: evenly spaced on Kaldi's mel scale."""
    low, here, high = hertz_to_mel(np.array([LOW_FREQUENCY, hertz, HIGH_FREQUENCY]), mel_scale="kaldi")
    return (here - low) / (high - low)


def _clock(time: float, duration: float) -> str:
    """A time in seconds, as minutes and seconds if the sound lasts a minute or more."""
    if _unit(duration):
        return f"{time:.3g}"
    minutes, seconds = divmod(round(time, 1), 60)
    return f"{minutes:.0f}:{seconds:04.1f}".removesuffix(".0")


def _unit(duration: float) -> str:
    return " s" if duration < 60 else ""


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if _unit(seconds) else f"{_clock(seconds, seconds)} min"
