"""The demo's results for a human: a markdown table for the terminal, and one HTML file that needs nothing else.

Whatever the report says about the numbers is computed from them here; `report.html.jinja` holds its looks and what is true of
every run.
"""

import base64
import io
import json
import os
import shlex
import struct
import zlib
from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from xacle.audio_xacle import fbank
from xacle.scoring.metrics import alignment_metrics
from xacle.soundscapes.scenes import KINDS, Event, Scene, describe, generator

EXAMPLES_EACH = 3  # at random, furthest off, closest
PAPER_PARAMETERS = 0.6e9  # BEATs 90M, projector 10M, Qwen2.5-0.5B 494M
PAPER_ENSEMBLE = ("stage123", "stage23")
CURVE_POINTS = 150
FBANK_RANGE = (8.0, 24.0)  # the same for all clips, so that a soft one looks soft
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
COLORS = ((11, 16, 26), (25, 62, 88), (20, 126, 128), (135, 199, 140), (253, 246, 205))  # from silent to loud


def write_report(run: dict, corpus: Path, file: Path) -> Path:
    """
    Write the report of a demo run: HTML with its sounds, pictures and styles inside, at most about 2 MB.

    Args:
        run: What `results.json` holds.
        corpus: The folder that `write_corpus` wrote; the examples' sounds are read from it.
        file: Where to write; the commands shown take it to be in the demo's output folder, with the model in `model/`.

    Raises:
        KeyError: if `run` lacks a part, or the corpus a clip of an example.
        soundfile.LibsndfileError: if the sound of an example cannot be read.
    """
    corpus, file = Path(corpus), Path(file)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # captions are data
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration}
    predicted = [row["pred_score"] for row in run["predictions"]]
    rated = [row["average_score"] for row in run["predictions"]]
    rows = {row["key"]: row for row in measured(run)}
    output = file.resolve().parent
    page = environment.get_template("report.html.jinja").render(
        run=run,
        rows=rows,
        final=rows[run["model"]],
        kinds=len(KINDS),
        ceiling=run["corpus"]["test"]["noise_ceiling_srcc"],
        findings=findings(run),
        times_smaller=round_off(PAPER_PARAMETERS / run["parameters"]) if "parameters" in run else None,
        dots=Scale.over([0, 1, *(row["test"]["low"] for row in rows.values())], 0, 100, most=8),
        metrics=alignment_metrics(predicted, rated),
        scatter=scatter(run["predictions"]),
        curves=[stage for curve in run["curves"].values() if (stage := curve_charts(curve, run))["charts"]],
        examples=examples(run["predictions"], corpus, run["seed"]),
        folder=shlex.quote(output.name),
        corpus=shlex.quote(Path(os.path.relpath(corpus.resolve(), output.parent)).as_posix()),
    )
    file.write_text(page, encoding="utf-8")
    return file


# ---- Numbers and what they say. ----


def format_table(run: dict) -> str:
    """The table as GitHub markdown, aligned: a row a configuration, the paper's SRCC and ours with its 95 % interval."""
    header = ("Configuration", "paper val", "paper test", "our val", "our test")
    ceilings = [number(run["corpus"][split]["noise_ceiling_srcc"]) for split in ("validation", "test")]
    cells = [header]
    for row in run["table"]:
        paper = [number(row["paper_validation"]), number(row["paper_test"])]
        cells.append((row["configuration"].replace("|", r"\|"), *paper, interval(row["validation"]), interval(row["test"])))
    cells.append(("Noise ceiling of our ratings", DASH, DASH, *ceilings))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in cells]
    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    table = "\n".join([lines[0], f"|{rule}|", *lines[1:]]) + "\n"
    return table.replace(MINUS, "-").replace(DASH, "-")  # not every terminal has them


def findings(run: dict) -> list[str]:
    """Sentences about the table, as the numbers have it: each only if the rows it is about were run."""
    if run["quick"]:
        return ["A quick run, to see that everything works: its numbers mean nothing."]
    rows = {row["key"]: row for row in measured(run)}
    value = {key: row["test"]["value"] for key, row in rows.items()}
    said = stage_findings(run, rows)
    for row in rows.values():
        members = [value[key] for key in row.get("members", PAPER_ENSEMBLE) if key in value]
        if row["group"] == "ensemble" and len(members) > 1:
            mean = sum(members) / len(members)
            where = relation(row["test"]["value"], mean, "the mean of its members")
            said.append(f"{row['configuration']}: {number(row['test']['value'])}, {where} ({number(mean)}).")
        elif row["group"] == "teacher":
            where = relation(value[run["model"]], row["test"]["value"], "its teacher")
            said.append(f"{rows[run['model']]['configuration']} is {where} ({number(row['test']['value'])}).")
    for row in rows.values():
        if row["group"] in ("untrained", "control"):
            said.append(control_finding(row))
    return said


def stage_findings(run: dict, rows: dict[str, dict]) -> list[str]:
    """What the full pipeline is worth, against stage 3 alone and stage by stage."""
    final, said = rows[run["model"]], []
    only = rows.get("stage3")
    if only and final is not only:
        apart = disjoint(final["test"], only["test"])
        where = relation(final["test"]["value"], only["test"]["value"], f"{only['configuration']} ({interval(only['test'])})")
        overlap = "the intervals do not overlap" if apart else "the intervals overlap, so one run does not settle it"
        said.append(f"{final['configuration']} reaches {interval(final['test'])} on the test pairs, {where}; {overlap}.")
    stages = [rows[key] for key in ("stage3", "stage23", "stage123") if key in rows]
    if len(stages) == 3:
        ours, paper = [row["test"]["value"] for row in stages], [row["paper_validation"] for row in stages]
        sentence = f"Before stage 3, pseudo-labels change the test SRCC by {signed(ours[1] - ours[0])}"
        sentence += f", and captioning before them by {signed(ours[2] - ours[1])}"
        if None not in paper:
            sentence += f" (paper, validation SRCC: by {signed(paper[1] - paper[0])} and {signed(paper[2] - paper[1])})"
            if disjoint(stages[0]["test"], stages[1]["test"]):
                likeness = "As in" if mainly_labels(*ours) == mainly_labels(*paper) else "Unlike in"
                drive = "are" if mainly_labels(*ours) else "are not"
                sentence += f". {likeness} the paper, the pseudo-labels {drive} the main driver"
            else:
                sentence += ". The intervals with and without them overlap, so one run does not settle what drives it"
        said.append(sentence + ".")
    return said


def disjoint(one: dict, other: dict) -> bool:
    """Whether two confidence intervals have nothing in common."""
    return one["low"] > other["high"] or one["high"] < other["low"]


def mainly_labels(stage3: float, stage23: float, stage123: float) -> bool:
    """Whether pseudo-labels improve the SRCC, and by more than captioning does."""
    return stage23 - stage3 > max(0.0, stage123 - stage23)


def control_finding(row: dict) -> str:
    """Whether a model that should know nothing, or only half of a pair, is above chance."""
    low, high = row["test"]["low"], row["test"]["high"]
    if low <= 0 <= high:
        verdict = "not distinguishable from 0"
    else:
        verdict = "above 0: it predicts some of the ratings" if low > 0 else "below 0"
    return f"{row['configuration']}: {interval(row['test'])}, {verdict}."


def relation(value: float, other: float, what: str) -> str:
    """E.g. "0.100 above the mean", of differences as they are printed."""
    difference = round(value - other, 3)
    return f"{abs(difference):.3f} {'above' if difference > 0 else 'below'} {what}" if difference else f"equal to {what}"


def measured(run: dict) -> list[dict]:
    """The rows of the table that have a test SRCC of ours."""
    return [row for row in run["table"] if row["test"] is not None]


def number(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}".replace("-", MINUS)


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", MINUS)


def interval(estimate: dict | None) -> str:
    """E.g. "0.510 [0.400, 0.600]"."""
    return DASH if estimate is None else "{} [{}, {}]".format(*(number(estimate[k]) for k in ("value", "low", "high")))


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s" if rest else "under 1 s"


def round_off(value: float) -> str:
    """To one significant digit: 1234 -> "1,000"."""
    return f"{float(f'{value:.1g}'):,.0f}"


# ---- Charts: what the template draws, in its coordinates. ----


@dataclass(frozen=True)
class Scale:
    """An axis: values from `low` to `high`, with round ticks a `step` apart, at positions `start` to `stop` (px or %)."""

    low: float
    high: float
    step: float
    start: float
    stop: float

    @classmethod
    def over(cls, values, start: float, stop: float, most: int = 5, least: float = 0.0) -> "Scale":
        """An axis for given values, from tick to tick, in about `most` steps or fewer, none below `least`."""
        low, high = min(values), max(values)
        wanted = (high - low or 1) / most
        power = 10 ** floor(log10(wanted))
        step = max(least, next(power * factor for factor in (1, 2, 5, 10) if power * factor >= wanted * (1 - 1e-9)))
        first, last = floor(round(low / step, 6)), ceil(round(high / step, 6))
        return cls(first * step, max(last, first + 1) * step, step, start, stop)

    @property
    def ticks(self) -> list[float]:
        return [self.low + index * self.step for index in range(round((self.high - self.low) / self.step) + 1)]

    def at(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start), 2)

    def label(self, tick: float) -> str:
        decimals = max(0, -floor(log10(self.step) + 1e-9))
        return f"{tick + 0.0:,.{decimals}f}".replace("-", MINUS)


def scatter(predictions: list[dict]) -> dict:
    """The axes of scores against ratings; scores are not clipped to 0-10."""
    scores = [row["pred_score"] for row in predictions]
    return {"x": Scale.over([0, 10], 44, 388), "y": Scale.over([0, 10, *scores], 356, 12, most=8)}


def curve_charts(curve: dict, run: dict) -> dict:
    """A stage's title and those of its two charts that there are points for; SRCC has the same axis in all stages."""
    srccs = [value for stage in run["curves"].values() for _, value in stage["srcc"]]
    charts = []
    if curve["loss"]:
        points = thinned(curve["loss"])
        charts.append(chart("Training loss", "step", points, [value for _, value in points]))
    if curve["srcc"]:
        charts.append(chart("Validation SRCC", "epoch", curve["srcc"], [0, 1, *srccs]))
        charts[-1]["best"] = max(curve["srcc"], key=lambda point: point[1])
    return {"title": curve["title"], "charts": charts}


def chart(name: str, unit: str, points: list, y_values: list[float]) -> dict:
    x = Scale.over([position for position, _ in points], 48, 400, least=1)
    return {"name": name, "unit": unit, "points": points, "x": x, "y": Scale.over(y_values, 152, 14), "best": None}


def thinned(points: list) -> list:
    """At most `CURVE_POINTS` points, each the mean of its neighbours."""
    groups = np.array_split(np.asarray(points, dtype=np.float64), min(CURVE_POINTS, len(points)))
    return [group.mean(axis=0).tolist() for group in groups]


# ---- Examples: sounds and pictures as data URIs. ----


def examples(predictions: list[dict], corpus: Path, seed: int) -> dict[str, list[dict]]:
    """Example pairs by the rule that chose them; no pair twice."""
    by_error = sorted(predictions, key=lambda row: abs(row["pred_score"] - row["average_score"]))
    closest, furthest = by_error[:EXAMPLES_EACH], by_error[EXAMPLES_EACH:][::-1][:EXAMPLES_EACH]
    others = [row for row in predictions if row not in closest + furthest]
    order = generator(seed, 5).random(len(others)).argsort()[:EXAMPLES_EACH]
    chosen = {"Drawn at random": [others[index] for index in order], "Furthest off": furthest, "Closest": closest}
    heard = heard_scenes(corpus)
    return {rule: [example(row, corpus, heard[row["wav_file_name"]]) for row in rows] for rule, rows in chosen.items() if rows}


def heard_scenes(corpus: Path) -> dict[str, Scene]:
    """What is to hear in each test clip."""
    scenes = {}
    for line in (corpus / "scenes.jsonl").read_text().splitlines():
        clip = json.loads(line)
        if clip["split"] == "test":
            events = [Event(**{**event, "attributes": tuple(event["attributes"])}) for event in clip["heard"]["events"]]
            scenes[clip["wav_file_name"]] = Scene(tuple(events), clip["heard"]["relation"])
    return scenes


def example(row: dict, corpus: Path, heard: Scene) -> dict:
    wave, sampling_rate = sf.read(corpus / "wav/test" / row["wav_file_name"], dtype="float32")
    encoded = io.BytesIO()
    sf.write(encoded, wave, sampling_rate, format="MP3")  # a fifth of the wav, and every browser plays it
    return {
        **row,
        "heard": describe(heard, generator(0)),
        "audio": data_uri("audio/mpeg", encoded.getvalue()),
        "spectrogram": data_uri("image/png", png(spectrogram(wave))),
    }


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def spectrogram(wave: np.ndarray) -> np.ndarray:
    """`[samples]` at 16 kHz -> the fbank as a picture, `[128, frames / 2]` uint8, high frequencies at the top."""
    frames = fbank(torch.from_numpy(wave)[None])[0].numpy()  # [frames, 128]
    frames = frames[: len(frames) // 2 * 2].reshape(-1, 2, frames.shape[1]).mean(axis=1)
    low, high = FBANK_RANGE
    return (np.clip((frames.T[::-1] - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def png(levels: np.ndarray) -> bytes:
    """`[height, width]` uint8 -> a PNG whose palette goes from silent to loud."""
    height, width = levels.shape
    palette = np.stack(
        [np.interp(np.linspace(0, len(COLORS) - 1, 256), range(len(COLORS)), c) for c in zip(*COLORS, strict=True)]
    )
    lines = b"".join(b"\0" + line.tobytes() for line in levels)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0),
        b"PLTE": palette.T.astype(np.uint8).tobytes(),
        b"IDAT": zlib.compress(lines, 9),
        b"IEND": b"",
    }
    framed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)
