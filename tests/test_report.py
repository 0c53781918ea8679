"""The demo's report needs no other file, agrees with its numbers, and treats captions as data."""

import base64
import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile as sf
import typer
from matplotlib.image import imread

from xacle.cli import app
from xacle.demo.generated_corpus import write_corpus
from xacle.demo.report import findings, format_table, write_report

ROOT = Path(__file__).parents[1]
HOSTILE = "<script>alert('a & b')</script> \"barks\""


class Page(HTMLParser):
    """Collects a page's tags with their attributes and its text; every tag that is opened must be closed in order."""

    VOID = {"meta", "img", "source"}

    def __init__(self, file: Path):
        super().__init__()
        self.source, self.tags, self.open, self.words = file.read_text(encoding="utf-8"), [], [], []
        self.feed(self.source)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "corpus"
    summary = write_corpus(folder, seed=0, train=2, validation=2, test=12, captions=2)
    return folder, summary


@pytest.fixture
def run(corpus):
    folder, summary = corpus
    rng, predictions = np.random.default_rng(0), []
    with (folder / "meta_data/test_average.csv").open(newline="") as table:
        for row in csv.DictReader(table):
            rating = float(row["average_score"])
            predictions.append({**row, "average_score": rating, "pred_score": rating + rng.normal()})
    curve = {"loss": [[step, 3 - step / 1000] for step in range(500)], "srcc": [[1, 0.2], [2, 0.4]]}
    return {
        "seed": 0,
        "quick": False,
        "seconds": 612.3,
        "machine": {"cpu": "Some CPU", "cores": 2, "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.7"},
        "steps": [{"name": "corpus", "title": "Generate soundscapes", "seconds": 21.0}],
        "corpus": summary,
        "pseudo_labels": {"rows": 5850},
        "table": [
            table_row("stage123", "All stages", "system", 0.7, 0.674, 0.625),
            table_row("stage3", "Stage 3 only", "system", 0.5, 0.574),
            table_row("stage23", "Stages 2 and 3", "system", 0.68, 0.669, 0.626),
            table_row("teacher", "Teacher", "teacher", 0.6, 0.602),
            table_row("ensemble", "Ensemble", "ensemble", 0.72, 0.678, 0.632),
            table_row("blind", "Caption-blind", "control", 0.04),
        ],
        "model": "stage123",
        "curves": {name: {"title": f"Curves of {name}", **curve} for name in ("stage2", "stage3")},
        "predictions": predictions,
        "captions": [{"wav_file_name": "00004.wav", "written": "a dog barks", "true": "a cat meows"}],
    }


def table_row(key, configuration, group, value, paper_validation=None, paper_test=None) -> dict:
    papers = {"paper_validation": paper_validation, "paper_test": paper_test}
    return {"key": key, "configuration": configuration, "group": group, **papers, **estimates(value)}


def estimates(value: float) -> dict:
    around = {"low": value - 0.08, "high": value + 0.08}
    return {"validation": {"value": value + 0.01, **around}, "test": {"value": value, **around}}


@pytest.fixture
def report(corpus, tmp_path):
    def write(run) -> Page:
        return Page(write_report(run, corpus[0], tmp_path / "report.html"))

    return write


def charts_of(page: Page) -> list[ElementTree.Element]:
    """The SVGs of a page, each in light and then in dark colors."""
    sources = [attributes.get("srcset", attributes.get("src")) for tag, attributes in page.tags if tag in ("img", "source")]
    charts = [source.split(";base64,")[1] for source in sources if source.startswith("data:image/svg+xml")]
    return [ElementTree.fromstring(base64.b64decode(chart)) for chart in charts]


def row_of(run, key) -> dict:
    return next(row for row in run["table"] if row["key"] == key)


def test_the_report_needs_no_other_file_and_no_network(run, report):
    page = report(run)
    assert len(page.source) < 3e6
    sources = [
        attributes[name] for _, attributes in page.tags for name in ("src", "srcset", "poster", "data") if name in attributes
    ]
    assert sources and all(source.startswith("data:") for source in sources)
    assert {tag for tag, attributes in page.tags if "href" in attributes} == {"a"}
    assert not page.all("script") and not page.all("link") and "url(" not in page.source and "@import" not in page.source
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert "default-src 'none'" in policy


def test_the_report_can_be_read_by_everyone(run, report):
    page = report(run)
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1
    assert all(attributes["scope"] in ("col", "row") for attributes in page.all("th"))
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert {source["media"] for source in page.all("source")} == {"(prefers-color-scheme: dark)"}


def test_the_report_says_that_nobody_listened_and_whose_numbers_are_whose(run, report):
    page = report(run)
    assert "Nobody listened." in page.text and "ratings are simulated" in page.text
    assert "not comparable with ours" in page.text and "A quick run" not in page.text


def test_the_numbers_of_the_table_are_in_both_tables(run, report):
    page, table = report(run), format_table(run)
    for text in (page.text, table):
        for number in ("0.674", "0.625", "0.574", "0.700", "0.710", "0.620", "0.780", "-0.040"):
            assert number in text.replace("\N{MINUS SIGN}", "-")
        assert f"{run['corpus']['test']['noise_ceiling_srcc']:.3f}" in text


def test_the_markdown_table_is_aligned(run):
    run["table"][0]["configuration"] = "Stages 1 | 2 | 3"
    lines = format_table(run).splitlines()
    assert len(lines) == 2 + len(run["table"]) + 1 and len({len(line) for line in lines}) == 1
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {7}
    assert lines[2].startswith(r"| Stages 1 \| 2 \| 3 ") and lines[2].endswith(" 0.700 [0.620, 0.780] |")
    assert format_table(run).isascii()


def test_captions_are_data(run, report):
    for row in run["predictions"]:
        row["text"] = HOSTILE
    run["captions"][0]["written"] = HOSTILE
    row_of(run, "stage3")["configuration"] = HOSTILE
    page = report(run)
    assert not page.all("script") and "<script" not in page.source
    assert page.text.count(HOSTILE) > 9 + 3  # examples, tables, findings
    assert [HOSTILE in " ".join(chart.itertext()) for chart in charts_of(page)].count(True) == 2  # the SRCCs, light and dark


def test_sounds_and_pictures_are_those_of_the_test_clips(run, corpus, report):
    page = report(run)
    sounds, names = page.all("audio"), [sound["aria-label"] for sound in page.all("audio")]
    assert len(names) == len(set(names)) == 9
    for sound, name in zip(sounds, names, strict=True):
        kind, content = sound["src"].split(";base64,")
        wave, rate = sf.read(io.BytesIO(base64.b64decode(content)))
        original, _ = sf.read(corpus[0] / "wav/test" / name)
        assert kind == "data:audio/mpeg" and rate == 16000 and len(wave) == 160000
        assert np.corrcoef(wave, original)[0, 1] > 0.8
    pictures = [picture["src"] for picture in page.all("img") if picture["src"].startswith("data:image/png")]
    assert len(set(pictures)) == 9
    for picture in pictures:
        assert imread(io.BytesIO(base64.b64decode(picture.split(";base64,")[1]))).shape[:2] == (128, 499)


def test_examples_are_chosen_by_the_rule_the_report_states(run, report):
    by_error = sorted(run["predictions"], key=lambda row: abs(row["pred_score"] - row["average_score"]))
    page = report(run)
    names = [sound["aria-label"] for sound in page.all("audio")]
    assert page.words.index("Drawn at random") < page.words.index("Furthest off") < page.words.index("Closest")
    assert names[3:6] == [row["wav_file_name"] for row in by_error[::-1][:3]]
    assert names[6:9] == [row["wav_file_name"] for row in by_error[:3]]
    run["seed"] = 1
    other = [sound["aria-label"] for sound in report(run).all("audio")]
    assert other[3:] == names[3:] and other[:3] != names[:3]


def test_the_findings_follow_the_numbers(run, report):
    text = report(run).text
    assert "All stages has 0.700 [0.620, 0.780] on the test pairs, 0.200 above Stage 3 only" in text
    assert "the intervals do not overlap" in text
    assert "pseudo-labels change the test SRCC by +0.180, and captioning before them by +0.020" in text
    assert "As in the paper, the pseudo-labels are the main driver." in text
    assert "Ensemble: 0.720, 0.030 above the mean of its members (0.690)." in text
    assert "All stages is 0.100 above its teacher (0.600)." in text
    assert re.search(r"Caption-blind: 0.040 \[.0.040, 0.120\], not distinguishable from 0\.", text)


def test_the_findings_report_when_the_recipe_fails(run):
    row_of(run, "stage123").update(estimates(0.42))
    row_of(run, "stage23").update(estimates(0.25))
    row_of(run, "ensemble").update(estimates(0.30))
    row_of(run, "blind").update(estimates(0.3))
    text = " ".join(findings(run))
    assert "0.080 below Stage 3 only" in text and "the intervals overlap, so one run does not settle it" in text
    assert "Unlike in the paper, the pseudo-labels are not the main driver." in text
    assert "Ensemble: 0.300, 0.035 below the mean of its members (0.335)." in text
    assert "All stages is 0.180 below its teacher" in text
    assert "Caption-blind: 0.300 [0.220, 0.380], above 0: it predicts some of the ratings." in text
    row_of(run, "stage23").update(estimates(0.45))
    assert "overlap, so one run does not settle what drives it." in " ".join(findings(run))
    assert findings({**run, "quick": True}) == ["A quick run, to see that everything works: its numbers mean nothing."]


def test_equal_numbers_are_called_equal(run):
    row_of(run, "stage123").update(estimates(0.5))
    assert "equal to Stage 3 only" in " ".join(findings(run))


def test_an_ensemble_may_name_its_members(run):
    row_of(run, "ensemble")["members"] = ["stage123", "stage3"]
    assert "Ensemble: 0.720, 0.120 above the mean of its members (0.600)." in " ".join(findings(run))


def test_parts_that_a_run_lacks_are_left_out(run, report):
    run.update(quick=True, captions=[], predictions=run["predictions"][:4])
    run["table"] = [row for row in run["table"] if row["key"] in ("stage123", "blind")]
    run["table"].append(
        {**table_row("baseline", "Challenge baseline", "system", 0.0, 0.384, 0.334), "validation": None, "test": None}
    )
    row_of(run, "blind")["validation"] = None
    run["curves"] = {
        "stage3": {"title": "Only losses", "loss": [[1, 2.0]], "srcc": []},
        "none": {"title": "No curve", "loss": [], "srcc": []},
    }
    page = report(run)
    assert "A quick run" in page.text and "stage-1 model writes" not in page.text
    assert "Stage 3 only" not in page.text and "main driver" not in page.text
    assert "Only losses" in page.text and "No curve" not in page.text and "Validation SRCC" not in page.text
    assert len(page.all("audio")) == 4
    assert page.text.count("Challenge baseline") == 1  # in the table; there is nothing to draw or to say
    assert format_table(run).splitlines()[-2].split()[-4:] == ["-", "|", "-", "|"]


def test_every_row_curve_and_pair_is_drawn(run, report):
    charts = charts_of(report(run))
    assert len(charts) == 2 * (1 + 1 + 2 * len(run["curves"]))  # SRCCs, scores, and two curves a stage; light and dark
    light, dark = charts[1::2], charts[::2]
    words = " ".join(light[0].itertext())
    for row in run["table"]:
        assert row["configuration"] in words and f"{row['test']['value']:.3f}".replace("-", "\N{MINUS SIGN}") in words
    assert f"noise ceiling {run['corpus']['test']['noise_ceiling_srcc']:.3f}" in words
    points = [group for group in light[1].iter() if group.get("id", "").startswith("PathCollection")]
    assert len(list(points[0].iter("{http://www.w3.org/2000/svg}use"))) == len(run["predictions"])
    assert "0.400" in " ".join(light[3].itertext())  # the best epoch's SRCC
    assert [list(chart.itertext()) for chart in light] == [list(chart.itertext()) for chart in dark]


def test_a_corpus_without_noise_ceiling_or_true_captions_has_a_report(run, report, corpus, tmp_path):
    run["corpus"] = {"captions": 2, **{split: {"pairs": 2} for split in ("train", "validation", "test")}}
    (tmp_path / "wav").symlink_to(corpus[0] / "wav")
    run["captions"][0]["true"] = None
    page = Page(write_report(run, tmp_path, tmp_path / "report.html"))
    for word in ("ceiling", "simulated", "Nobody listened", "A true caption", "listeners"):
        assert word not in page.text
    assert "ceiling" not in format_table(run) and len(page.all("audio")) == 9


def test_how_much_smaller_the_model_is_comes_from_its_size(run, report):
    assert "far larger" in report(run).text
    run["parameters"] = 1_230_000
    assert "about 500 times larger" in report(run).text


def test_scores_off_the_scale_and_negative_intervals_are_drawn_inside(run, report):
    run["predictions"][0]["pred_score"], run["predictions"][1]["pred_score"] = 14.2, -3.1
    row_of(run, "blind").update(estimates(-0.3))
    page = report(run)
    assert re.search(r"Caption-blind: .0\.300 \[.0\.380, .0\.220\], below 0\.", page.text)
    for chart in charts_of(page):
        left, top, width, height = map(float, chart.get("viewBox").split())
        for point in chart.iter("{http://www.w3.org/2000/svg}use"):
            assert left <= float(point.get("x")) <= width and top <= float(point.get("y")) <= height
    widths = [float(style) for style in re.findall(r"width: ([-\d.]+)%", page.source)]
    assert min(widths) >= 0 and max(widths) <= 100


def test_the_commands_on_the_page_exist(run, report):
    page = report(run)
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    guides = " ".join(" ".join(page.read_text() for page in pages).replace("\\\n", " ").split())
    blocks = re.findall(r"<pre[^>]*><code>(.*?)</code>", page.source, flags=re.DOTALL)
    commands = "\n".join(blocks).replace("&#34;", '"').replace("\\\n", " ").splitlines()
    assert len(commands) == 7
    for line in commands:
        words = line.split()
        if "test_average.csv" in line:
            command = typer.main.get_command(app).commands[words[1]]
            command.make_context(line, words[2:])
            continue
        assert " ".join(words) in guides
