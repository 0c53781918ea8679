"""The demo's results for a human: a markdown table for the terminal, and one HTML file that needs nothing else.

Whatever the report says about the numbers is computed from them here; `report.html.jinja` holds its looks and what is true of
every run.
"""

import io
import os
import shlex
from pathlib import Path

import soundfile as sf
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from xacle.audio_xacle import SAMPLING_RATE, load_waveform
from xacle.demo.charts import (
    DARK,
    LIGHT,
    MINUS,
    data_uri,
    loss_chart,
    number,
    score_chart,
    spectrogram,
    srcc_chart,
    validation_chart,
)
from xacle.demo.corpus import Corpus
from xacle.scoring.metrics import alignment_metrics
from xacle.soundscapes.random_numbers import generator

EXAMPLES_EACH = 3  # at random, furthest off, closest
PAPER_PARAMETERS = 0.6e9  # BEATs 90M, projector 10M, Qwen2.5-0.5B 494M
PAPER_ENSEMBLE = ("stage123", "stage23")
DASH = "\N{EN DASH}"


def write_report(run: dict, corpus: Path, file: Path) -> Path:
    """
    Write the report of a demo run: HTML with its sounds, pictures and styles inside, at most about 2 MB.

    Args:
        run: What `results.json` holds.
        corpus: The corpus folder; the examples' sounds are read from it.
        file: Where to write; the page's commands expect it in the demo's output folder, with the model in `model/`.

    Raises:
        KeyError: if `run` lacks a part.
        FileNotFoundError, ValueError: if the sound of an example cannot be read.
    """
    corpus, file = Path(corpus), Path(file)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # captions are data
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": known, "duration": duration}
    predicted = [row["pred_score"] for row in run["predictions"]]
    rated = [row["average_score"] for row in run["predictions"]]
    rows = {row["key"]: row for row in measured(run)}
    final, ceiling = rows[run["model"]], noise_ceiling(run, "test")
    metrics = alignment_metrics(predicted, rated)
    rating_name = "simulated rating (mean)" if run["corpus"].get("ratings") == "simulated" else "rating (mean)"
    output = file.resolve().parent
    page = environment.get_template("report.html.jinja").render(
        run=run,
        about={name: run["corpus"].get(name, "") for name in ("about", "ratings", "about_ratings")},
        rows=rows,
        final=final,
        ceiling=ceiling,
        validation_ceiling=noise_ceiling(run, "validation"),
        findings=findings(run),
        times_smaller=round_off(PAPER_PARAMETERS / run["parameters"]) if "parameters" in run else None,
        light=LIGHT,
        dark=DARK,
        srcc_chart=srcc_chart(list(rows.values()), final, ceiling),
        metrics=metrics,
        score_chart=score_chart(rated, predicted, metrics["SRCC"], rating_name),
        curves=curves(run),
        examples=examples(run["predictions"], Corpus(corpus), run["seed"]),
        folder=shlex.quote(output.name),
        corpus=shlex.quote(Path(os.path.relpath(corpus.resolve(), output.parent)).as_posix()),
    )
    file.write_text(page, encoding="utf-8")
    return file


# ---- Numbers and what they say. ----


def format_table(run: dict) -> str:
    """The table as GitHub markdown, aligned: a row a configuration, the paper's SRCC and ours with its 95 % interval."""
    header = ("Configuration", "paper val", "paper test", "our val", "our test")
    cells = [header]
    for row in run["table"]:
        paper = [known(row["paper_validation"]), known(row["paper_test"])]
        cells.append((row["configuration"].replace("|", r"\|"), *paper, interval(row["validation"]), interval(row["test"])))
    if noise_ceiling(run, "test") is not None:
        ceilings = [known(noise_ceiling(run, split)) for split in ("validation", "test")]
        cells.append(("Noise ceiling of our ratings", DASH, DASH, *ceilings))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in cells]
    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    table = "\n".join([lines[0], f"|{rule}|", *lines[1:]]) + "\n"
    return table.replace(MINUS, "-").replace(DASH, "-")  # not every terminal has them


def findings(run: dict) -> list[str]:
    """Sentences about the table, computed from its numbers: each only if the rows it is about were run."""
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
    """The full pipeline against stage 3 alone, and stage by stage."""
    final, said = rows[run["model"]], []
    only = rows.get("stage3")
    if only and final is not only:
        apart = disjoint(final["test"], only["test"])
        where = relation(final["test"]["value"], only["test"]["value"], f"{only['configuration']} ({interval(only['test'])})")
        overlap = "the intervals do not overlap" if apart else "the intervals overlap, so one run does not settle it"
        said.append(f"{final['configuration']} has {interval(final['test'])} on the test pairs, {where}; {overlap}.")
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
    """Whether a model without training, or with only half of each pair, is above chance."""
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


def noise_ceiling(run: dict, split: str) -> float | None:
    """The SRCC that the truth behind the ratings would have, where the corpus says so."""
    return run["corpus"][split].get("noise_ceiling_srcc")


def measured(run: dict) -> list[dict]:
    """The rows of the table that were run here."""
    return [row for row in run["table"] if row["test"] is not None]


def known(value: float | None) -> str:
    return DASH if value is None else number(value)


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


# ---- Charts and examples. ----


def curves(run: dict) -> list[dict]:
    """The charts of each stage that has points; the validation SRCC has the same axis in all stages."""
    srccs = [value for stage in run["curves"].values() for _, value in stage["srcc"]]
    limits = (min([0, *srccs]), max([1, *srccs]))
    stages = []
    for stage in run["curves"].values():
        charts = {}
        if stage["loss"]:
            charts["Training loss"] = loss_chart(stage["loss"])
        if stage["srcc"]:
            charts["Validation SRCC"] = validation_chart(stage["srcc"], limits)
        if charts:
            stages.append({"title": stage["title"], "charts": charts})
    return stages


def examples(predictions: list[dict], corpus: Corpus, seed: int) -> dict[str, list[dict]]:
    """Example pairs by the rule that chose them; no pair twice."""
    by_error = sorted(predictions, key=lambda row: abs(row["pred_score"] - row["average_score"]))
    closest, furthest = by_error[:EXAMPLES_EACH], by_error[EXAMPLES_EACH:][::-1][:EXAMPLES_EACH]
    others = [row for row in predictions if row not in closest + furthest]
    order = generator(seed, 5).random(len(others)).argsort()[:EXAMPLES_EACH]
    chosen = {"Drawn at random": [others[index] for index in order], "Furthest off": furthest, "Closest": closest}
    return {rule: [example(row, corpus) for row in rows] for rule, rows in chosen.items() if rows}


def example(row: dict, corpus: Corpus) -> dict:
    waveform = load_waveform(corpus.audio_dir("test") / row["wav_file_name"])
    encoded = io.BytesIO()
    sf.write(encoded, waveform, SAMPLING_RATE, format="MP3")  # a fifth of the wav, and every browser plays it
    return {
        **row,
        "true_caption": corpus.true_captions().get(row["wav_file_name"]),
        "audio": data_uri("audio/mpeg", encoded.getvalue()),
        "spectrogram": spectrogram(waveform),
    }
