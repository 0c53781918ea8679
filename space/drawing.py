"""Ratings -> HTML: gauge, ranking, spectrogram and the windows' ratings over time. Styles are in style.css."""

import base64
import io
import math
from html import escape

import numpy as np
from PIL import Image

from rating import Rating, Result

MAX_COLUMNS = 1200  # of a spectrogram
FBANK_RANGE = (8.0, 24.0)  # log energy; the same for all sounds, so that a soft one looks soft
LOW_FREQUENCY, HIGH_FREQUENCY = 20.0, 8000.0
FREQUENCIES = {250: "250", 1000: "1k", 4000: "4k"}  # Hz, at the spectrogram's side
COLORS = ((13, 20, 33), (24, 66, 92), (23, 129, 128), (140, 203, 143), (254, 247, 210))  # from silent to loud
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120)  # seconds between marks of time
MAX_MARKS = 6
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
NARROW, NARROWEST = 0.14, 0.06  # of the width: windows below have no room for a number on a phone, or anywhere


def number(score: float) -> str:
    return f"{score:.1f}".replace("-", MINUS)


def share(score: float) -> float:
    """A rating as a share of the scale, 0-1; what lies beyond is shown at its end."""
    return min(max(score / 10, 0.0), 1.0)


def draw_empty() -> str:
    return f"""
<div class="xr-card xr-empty"><div class="xr-gauge">{gauge(None)}</div>
<p>Add a sound and a caption, and see here how well they match.</p></div>"""


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
    said = "no rating yet" if score is None else f"{number(score)} on a scale from 0 to 10"
    return f"""
<svg viewBox="0 0 200 124" role="img" aria-label="{said}"><path class="xr-track" {arc}/>{value}
<text class="xr-number" x="100" y="96">{DASH if score is None else number(score)}</text>
<text x="20" y="120">0</text><text x="100" y="120">out of 10</text><text x="180" y="120">10</text></svg>"""


def ranking(ratings: list[Rating]) -> str:
    rows = "".join(
        f'<li><span class="xr-caption">{escape(rating.caption)}</span><span class="xr-score">{number(rating.score)}</span>'
        f'<span class="xr-bar"><i style="width:{100 * share(rating.score):.1f}%"></i></span></li>'
        for rating in ratings
    )
    return f'<section class="xr-card"><h3>Ranking of {len(ratings)} captions</h3><ol class="xr-ranking">{rows}</ol></section>'


def over_time(result: Result) -> str:
    """The spectrogram and, for a long sound, each caption's ratings beneath it on the same axis of time."""
    seconds = result.seconds
    marks = "".join(
        f'<span style="left:{100 * mark / seconds:.2f}%">{_clock(mark) if mark else "0 s"}</span>'
        for mark in time_marks(seconds)
    )
    cuts = "".join(
        f'<i class="xr-cut" style="left:{100 * start / seconds:.2f}%"></i>'
        for start, end in result.spans[1:]
        if (end - start) / seconds >= NARROWEST
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
    bars = ""
    for (start, end), score in zip(result.spans, rating.windows, strict=True):
        width = (end - start) / result.seconds
        narrow = " xr-narrow" if width < NARROW else ""
        label = number(score) if width >= NARROWEST else ""
        said = f"{_clock(start)} to {_clock(end)}: {number(score)}"
        bars += (
            f'<span class="xr-window{narrow}" style="width:{100 * width:.3f}%" title="{said}">'
            f'<span><i style="height:{100 * share(score):.1f}%"></i></span><b>{label}</b></span>'
        )
    caption = f'<p class="xr-caption">{escape(rating.caption)}</p>' if len(result.ratings) > 1 else ""
    said = ", ".join(map(number, rating.windows))
    return f'{caption}<div class="xr-windows" role="img" aria-label="Ratings of the windows: {said}">{bars}</div>'


def spectrogram(fbank: np.ndarray) -> str:
    """Log-mel `[frames, mel bins]` -> a PNG as a data URI, low frequencies at the bottom."""
    columns = min(len(fbank), MAX_COLUMNS)
    edges = np.linspace(0, len(fbank), columns, endpoint=False).astype(int)
    pooled = np.add.reduceat(fbank, edges) / np.diff([*edges, len(fbank)])[:, None]
    low, high = FBANK_RANGE
    levels = np.clip((pooled - low) / (high - low), 0, 1) * 255
    image = Image.fromarray(np.ascontiguousarray(levels.T[::-1]).astype(np.uint8))
    stops = np.linspace(0, 255, len(COLORS))
    palette = np.stack([np.interp(np.arange(256), stops, channel) for channel in zip(*COLORS, strict=True)], axis=1)
    image.putpalette(palette.round().astype(np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def time_marks(seconds: float) -> list[float]:
    """At most `MAX_MARKS` round times, from 0 on."""
    step = next((step for step in STEPS if seconds / step < MAX_MARKS), STEPS[-1])
    return [step * index for index in range(math.floor(seconds / step + 1e-6) + 1)]


def _height(hertz: float) -> float:
    """How high a frequency is in the spectrogram, 0-1: evenly spaced on Kaldi's mel scale."""
    low, here, high = (math.log(1 + frequency / 700) for frequency in (LOW_FREQUENCY, hertz, HIGH_FREQUENCY))
    return (here - low) / (high - low)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}" if seconds >= 60 else f"{seconds:.3g}"


def _duration(seconds: float) -> str:
    return f"{_clock(seconds)} min" if seconds >= 60 else f"{seconds:.1f} s"
