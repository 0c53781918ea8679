"""The report's charts, drawn by matplotlib: data URIs that need no other file, each in light and dark colors."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave

from xacle.audio_xacle import fbank

LIGHT = {
    "page": "#fcfcfa",
    "panel": "#f3f4f1",
    "ink": "#1d2226",
    "soft": "#596168",
    "line": "#dcdfdb",
    "grid": "#e7e9e5",
    "accent": "#0f6e6c",
    "neutral": "#8a9299",
}
DARK = {
    "page": "#14181b",
    "panel": "#1c2226",
    "ink": "#e6e8e6",
    "soft": "#a0a9ae",
    "line": "#343c41",
    "grid": "#272e33",
    "accent": "#5cc8bf",
    "neutral": "#7d878e",
}
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "xacle",  # the same file for the same numbers
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # names are data
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["soft"],
    "xtick.color": LIGHT["soft"],
    "ytick.color": LIGHT["soft"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["grid"],
    "axes.edgecolor": LIGHT["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}
CURVE_POINTS = 150
FBANK_RANGE = (8.0, 24.0)  # the same for all clips, so that a soft one looks soft
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Chart:
    """SVG as data URIs, for light and for dark pages, and what it shows in words."""

    light: str
    dark: str
    alt: str


def number(value: float) -> str:
    return f"{value:.3f}".replace("-", MINUS)


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def draw(size: tuple[float, float], paint: Callable[[Axes], None], alt: str) -> Chart:
    """A chart of a size in inches; `paint` draws on its axes, in colors of `LIGHT` only."""
    with matplotlib.rc_context(STYLE):
        figure, file = Figure(figsize=size, layout="constrained"), io.StringIO()
        paint(figure.add_subplot())
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    light = dark = file.getvalue()
    for name, color in LIGHT.items():
        dark = dark.replace(color, DARK[name])
    return Chart(data_uri("image/svg+xml", light.encode()), data_uri("image/svg+xml", dark.encode()), alt)


def srcc_chart(rows: list[dict], final: dict, ceiling: float | None) -> Chart:
    """The test SRCC of each row of the table with its interval, `final` marked, and the noise ceiling if it is known."""

    def paint(axes: Axes) -> None:
        for place, row in enumerate(rows):
            estimate, color = row["test"], LIGHT["accent" if row is final else "neutral"]
            axes.plot([estimate["low"], estimate["high"]], [place, place], color=color, linewidth=2)
            axes.plot(estimate["value"], place, "o", color=color)
            label = {"y": place - 0.28, "va": "bottom", "transform": axes.get_yaxis_transform()}
            label |= {"color": LIGHT["accent" if row is final else "ink"]}
            axes.text(x=0, s=row["configuration"], **label)
            axes.text(x=1.03, s=number(estimate["value"]), **label | {"y": place, "va": "center"})
        axes.axvline(0, color=LIGHT["neutral"], linewidth=0.8)
        if ceiling is not None:
            axes.axvline(ceiling, color=LIGHT["ink"], linewidth=0.8, linestyle="--")
            axes.set_title(f"dashed: noise ceiling {number(ceiling)}", loc="right", fontsize=9)
        axes.set_xlim(min(0, *(row["test"]["low"] for row in rows)) - 0.02, 1)
        axes.set_ylim(len(rows) - 0.5, -0.9)
        axes.set_yticks([])

    alt = "Test SRCC of each configuration with its 95 % interval; the table below has the numbers."
    return draw((4.6, 0.46 * len(rows) + 0.7), paint, alt)


def score_chart(ratings: list[float], scores: list[float], srcc: float, rating_name: str) -> Chart:
    """Scores against ratings; scores are not clipped to 0-10."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 10], [0, 10], color=LIGHT["ink"], linewidth=0.8, linestyle="--")
        axes.scatter(ratings, scores, s=14, color=LIGHT["accent"], alpha=0.5, linewidths=0)
        axes.set(xlabel=rating_name, ylabel="score")

    alt = f"Scatter plot of {len(scores)} test pairs, score against {rating_name}: SRCC {srcc:.3f}."
    return draw((4, 4), paint, alt)


def loss_chart(points: list) -> Chart:
    """Training loss by step."""
    return curve_chart("Training loss", "step", thinned(points))


def validation_chart(points: list, limits: tuple[float, float]) -> Chart:
    """Validation SRCC by epoch, its best value marked; `limits` of the vertical axis."""

    def mark_best(axes: Axes) -> None:
        epoch, best = max(points, key=lambda point: point[1])
        axes.plot(epoch, best, "o", color=LIGHT["accent"], markersize=5)
        axes.annotate(number(best), (epoch, best), (0, 6), textcoords="offset points", ha="center")
        axes.set_ylim(limits[0] - 0.05, limits[1] + 0.05)

    return curve_chart("Validation SRCC", "epoch", points, mark_best)


def curve_chart(name: str, unit: str, points: list, finish: Callable[[Axes], None] | None = None) -> Chart:
    """A curve of `(position, value)` points; `finish` may draw more on its axes."""
    positions, values = np.asarray(points, dtype=np.float64).T

    def paint(axes: Axes) -> None:
        axes.plot(positions, values, color=LIGHT["accent"], linewidth=1.5, marker="o" if len(points) == 1 else None)
        if finish is not None:
            finish(axes)
        axes.set_xlabel(unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(points) == 1:
            axes.set_xticks(positions)

    return draw((3.4, 1.8), paint, f"{name} by {unit}: from {values[0]:.3f} to {values[-1]:.3f}")


def thinned(points: list) -> list:
    """At most `CURVE_POINTS` points, each the mean of its neighbors."""
    groups = np.array_split(np.asarray(points, dtype=np.float64), min(CURVE_POINTS, len(points)))
    return [group.mean(axis=0).tolist() for group in groups]


def spectrogram(waveform: np.ndarray) -> str:
    """`[samples]` at 16 kHz -> its fbank as a PNG, high frequencies at the top, as a data URI."""
    frames = fbank(torch.from_numpy(waveform)[None])[0].numpy()  # [frames, 128]
    frames = frames[: len(frames) // 2 * 2].reshape(-1, 2, frames.shape[1]).mean(axis=1)
    low, high = FBANK_RANGE
    file = io.BytesIO()
    imsave(file, frames.T, vmin=low, vmax=high, cmap="magma", origin="lower", format="png")
    return data_uri("image/png", file.getvalue())
