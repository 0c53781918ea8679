"""The page: ratings and drawings by themselves; then the page as visitors meet it, in Chromium where there is one."""

import base64
import csv
import io
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from urllib.request import urlopen

import numpy as np
import pytest
import soundfile as sf
from conftest import ROOT
from hub_server import Store
from huggingface_hub.repocard import metadata_load
from PIL import Image

from drawing import draw_problem, draw_result, gauge, spectrogram, time_marks
from rating import MAX_CAPTIONS, InputError, Rater, Rating, Result
from xacle.demo.tiny_models import make_sound
from xacle.scoring.scorer import Scorer

SPACE = ROOT / "space"
HAS_GRADIO = find_spec("gradio") is not None


def integration(test):
    """Marks a test that needs gradio, which `make test-integration` installs."""
    return pytest.mark.integration(pytest.mark.skipif(not HAS_GRADIO, reason="gradio is not installed")(test))


@pytest.fixture(scope="module")
def rater(tiny_folder) -> Rater:
    return Rater(str(tiny_folder))


@pytest.fixture(scope="module")
def long_sound(tmp_path_factory):
    """25 s at 22.05 kHz, stereo: rain, a siren, a clock."""
    file = tmp_path_factory.mktemp("sounds") / "long walk.wav"
    sound = np.concatenate([make_sound(name, seconds) for name, seconds in (("rain", 14), ("siren", 14), ("clock", 6.5))])
    sf.write(file, np.stack([sound, 0.5 * sound], axis=1), 22050)
    return file


# --- Ratings -------------------------------------------------------------------------------------------------------------


def test_the_page_rates_as_the_pipeline_does_where_this_package_is_absent(tiny_folder, long_sound, run_python):
    code = f"""
import sys
sys.path.insert(0, {str(SPACE)!r})
from rating import Rater
from transformers import pipeline
folder, sound = sys.argv[1:]
result = Rater(folder).rate(sound, "A clock ticks\\n\\n  A siren rises  \\nA clock ticks")
scorer = pipeline(model=folder, trust_remote_code=True)
expected = {{text: scorer({{"audio": sound, "text": text}}) for text in ("A clock ticks", "A siren rises")}}
assert [rating.caption for rating in result.ratings] == sorted(expected, key=lambda text: -expected[text]["score"])
for rating in result.ratings:
    windows = expected[rating.caption]["windows"]
    assert len(windows) == 3 and abs(rating.score - expected[rating.caption]["score"]) < 1e-5
    assert all(abs(score - window["score"]) < 1e-5 for score, window in zip(rating.windows, windows, strict=True))
    assert all(
        abs(start - window["start"]) < 1e-4 and abs(end - window["end"]) < 1e-4
        for (start, end), window in zip(result.spans, windows, strict=True)
    )
print(result.name, result.fbank.shape, *result.notes, sep="|")
"""
    name, shape, *notes = run_python(code, tiny_folder, long_sound).strip().split("|")
    assert name == "long walk.wav" and shape == "(2499, 128)"  # 998 + 998 + 503
    assert "3 windows" in notes[0] and "not calibrated" in notes[1] and len(notes) == 2


def test_one_sound_has_the_scores_of_the_package(rater, tiny_folder, tmp_path):
    sf.write(tmp_path / "clock.wav", make_sound("clock", 0.5), 16000)
    result = rater.rate(str(tmp_path / "clock.wav"), "A clock ticks")
    expected = Scorer.from_pretrained(str(tiny_folder), "cpu").score([tmp_path / "clock.wav"], ["A clock ticks"])
    assert result.ratings[0].score == pytest.approx(expected[0], abs=1e-5)
    assert result.seconds == 0.5 and any("Only 0.5 s" in note for note in result.notes)


def test_notes_tell_what_was_cut_and_what_is_off_the_scale(rater, tmp_path, monkeypatch):
    sf.write(tmp_path / "rain.wav", make_sound("rain", 2), 16000)
    monkeypatch.setattr(rater.model.config, "score_shift", 40.0)
    notes = rater.rate(str(tmp_path / "rain.wav"), "rain " * 300).notes
    assert [note.split()[0] for note in notes] == ["A", "Ratings"] and "256" in notes[0]


@pytest.mark.parametrize(
    ("samples", "captions", "words"),
    [
        (None, "A dog barks", "Add a sound"),
        ("a dog", "A dog barks", "Cannot decode sound.wav"),
        ("", "A dog barks", "Cannot decode sound.wav"),
        (make_sound("rain", 2), " \n\t\n", "Write a caption"),
        (make_sound("rain", 2), None, "Write a caption"),
        (make_sound("rain", 2), "\n".join(map(str, range(MAX_CAPTIONS + 1))), "up to 20"),
        (make_sound("rain", 0.05), "A dog barks", "too short"),
        (np.zeros(32000), "A dog barks", "silent"),
        (np.zeros(16000 * 601), "A dog barks", "up to 10"),
    ],
)
def test_what_cannot_be_rated_is_said_in_words(rater, tmp_path, samples, captions, words):
    file = tmp_path / "sound.wav"
    if isinstance(samples, str):
        file.write_text(samples)
    elif samples is not None:
        sf.write(file, samples, 16000)
    with pytest.raises(InputError, match=words) as problem:
        rater.rate(samples if samples is None else str(file), captions)
    assert str(tmp_path) not in str(problem.value)


@pytest.mark.parametrize("model", ["no/such/folder", str(ROOT / "tests"), "beats"])
def test_a_model_that_cannot_be_used_is_an_error(model):
    with pytest.raises((OSError, ValueError), match=r"no such folder|no config\.json"):
        Rater(model)


@pytest.mark.parametrize(
    ("model_type", "reason"), [("clap", "CLAP teacher"), ("m2d_clap", "CLAP teacher"), ("bert", "of type 'bert'")]
)
def test_other_models_are_no_scorers(tmp_path, model_type, reason):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=f"{reason}.* scorer"):
        Rater(str(tmp_path))


def test_a_captioner_is_no_scorer(make_scorer, processor, tmp_path):
    from xacle.modeling_xacle import XacleForConditionalGeneration

    make_scorer(model_class=XacleForConditionalGeneration).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lacks the weights"):
        Rater(str(tmp_path))


# --- Drawings ------------------------------------------------------------------------------------------------------------


def result_of(*scores: float, windows: int = 1) -> Result:
    ratings = [Rating(f"<em>{score}</em>", score, [score] * windows) for score in scores]
    spans = [(10.0 * index, 10.0 * index + 10) for index in range(windows)]
    return Result("a&b.wav", spans, ratings, np.full((100 * windows, 128), 12.0), ["1 < 2"])


def test_a_drawing_shows_all_there_is_and_escapes_it():
    page = draw_result(result_of(7.25, -1.0, windows=3))
    assert "<em>" not in page and "&lt;em&gt;7.25&lt;/em&gt;" in page and "a&amp;b.wav" in page and "1 &lt; 2" in page
    assert re.findall(r'xr-score">([^<]+)<', page) == ["7.25", "\N{MINUS SIGN}1.00"]
    assert page.count('class="xr-windows') == 2 and page.count("<li><span>0\N{EN DASH}10 s</span>") == 2 and "30.0 s" in page
    single = draw_result(result_of(7.25))
    assert "xr-ranking" not in single and "xr-windows" not in single
    assert "&lt;script&gt;" in draw_problem("<script>")


@pytest.mark.parametrize(
    ("seconds", "first", "last"),
    [
        (20.5, "0-10 s", "20-20.5 s"),
        (59.9, "0-10 s", "50-59.9 s"),
        (95, "0:00-0:10", "1:30-1:35"),
        (600, "0:00-0:10", "9:50-10:00"),
    ],
)
def test_each_window_of_a_long_sound_has_its_rating_in_text(seconds, first, last):
    result = result_of(6.604, 6.596, windows=math.ceil(seconds / 10))
    result.spans[-1] = (result.spans[-1][0], seconds)
    rows = re.findall(r"<li><span>([^<]+)</span> <b>([^<]+)</b></li>", draw_result(result).replace("\N{EN DASH}", "-"))
    assert len(rows) == 2 * len(result.spans)
    assert rows[0] == (first, "6.60") and rows[len(result.spans) - 1] == (last, "6.60")


@pytest.mark.parametrize(("score", "filled"), [(0.0, "0.0000"), (4.5, "0.4500"), (12.0, "1.0000"), (-3.0, "0.0000")])
def test_the_gauge_is_filled_up_to_the_score(score, filled):
    assert f'stroke-dasharray="{filled} 2"' in gauge(score)


def test_a_low_tone_is_drawn_at_the_bottom():
    fbank = np.full((5000, 128), 8.0)
    fbank[2500:, 10] = 24.0
    image = Image.open(io.BytesIO(base64.b64decode(spectrogram(fbank).partition(",")[2])))
    pixels = np.asarray(image.convert("L"))
    assert image.size == (1200, 128)
    assert (pixels[127 - 10, 600:] > 200).all() and pixels[: 127 - 10].max() < 50 and pixels[:, :600].max() < 50


@pytest.mark.parametrize(
    ("seconds", "last"), [(0.3, 0.3), (1.0, 1.0), (9.9, 8), (10.0, 10), (25.0, 25), (130.0, 120), (600.0, 600)]
)
def test_marks_of_time_are_few_and_round(seconds, last):
    marks = time_marks(seconds)
    assert 2 <= len(marks) <= 6 and marks[0] == 0 and marks[-1] == pytest.approx(last)


# --- The folder as a Space -----------------------------------------------------------------------------------------------


def test_the_space_names_what_it_needs():
    card = metadata_load(SPACE / "README.md")
    pins = dict(line.split("==") for line in (SPACE / "requirements.txt").read_text().splitlines() if "==" in line)
    assert card["sdk"] == "gradio" and card["sdk_version"] == pins["gradio"] and (SPACE / card["app_file"]).is_file()
    assert len(card["short_description"]) <= 60 and card["models"]
    assert {f"{name}=={version}" for name, version in pins.items()} <= set((ROOT / "constraints.txt").read_text().splitlines())


def test_every_example_can_be_rated(rater):
    with (SPACE / "examples/captions.csv").open() as file:
        rows = list(csv.DictReader(file))
    files = {row["wav_file_name"] for row in rows}
    assert files == {path.name for path in (SPACE / "examples").glob("*.mp3")}
    for name in files:
        captions = [row["text"] for row in rows if row["wav_file_name"] == name]
        assert len(rater.rate(str(SPACE / "examples" / name), "\n".join(captions)).ratings) == len(captions)


def refused(*arguments, env=None) -> str:
    """What `xacle app` says when it cannot serve a page."""
    result = subprocess.run(
        [sys.executable, "-m", "xacle.cli", "app", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        env={**os.environ, **(env or {})},
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    return result.stderr


def test_the_command_says_what_is_missing():
    expected = "'no-such-model' cannot be used: there is no such folder" if HAS_GRADIO else "pip install -e '.[space]'"
    message = refused("--model", "no-such-model")
    assert expected in message and "[train]" not in message


@integration
def test_examples_that_are_not_there_are_refused(tmp_path):
    from app import main

    with pytest.raises(SystemExit, match="none' is no folder of examples"):
        main(["--model", "x", "--examples", str(tmp_path / "none")])
    for row, reason in [("dog.wav,A dog barks", "there is no sound '.*dog.wav'"), ("dog.wav", "text is missing")]:
        (tmp_path / "captions.csv").write_text(f"wav_file_name,text\n{row}\n")
        with pytest.raises(SystemExit, match=rf"captions\.csv', line 2: .*{reason}"):
            main(["--model", "x", "--examples", str(tmp_path)])


@integration
def test_a_taken_port_is_refused():
    from app import main

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        with pytest.raises(SystemExit, match=f"port {port} is taken; choose another --port"):
            main(["--model", "x", "--port", port])
    with pytest.raises(SystemExit, match="port 70000 cannot be used"):
        main(["--model", "x", "--port", "70000"])


@integration
def test_a_private_model_needs_a_token(hub, tmp_path):
    Store(hub.folder).create("tester/page", private=True)
    message = refused("--model", "tester/page", env=hub.env(tmp_path, token=None))
    assert "'tester/page' cannot be used" in message and "hf auth login" in message


# --- In a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    installed = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium can be started ({str(error).splitlines()[0]}): `playwright install chromium`")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(browser, tiny_folder, tmp_path_factory):
    """The page served as a Space serves it: from its folder, the model by variable, without this package."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"import runpy, sys; sys.modules['xacle'] = None; sys.argv = ['app.py', '--port', '{port}']; "
    log = tmp_path_factory.mktemp("log") / "app.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-c", code + "runpy.run_path('app.py', run_name='__main__')"],
            cwd=SPACE,
            env={**os.environ, "XACLE_MODEL": str(tiny_folder), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=output,
            stderr=output,
        )
    try:
        for _ in range(240):
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                with urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                    break
            except OSError:
                time.sleep(0.25)
        yield f"http://127.0.0.1:{port}/"
        assert "Traceback" not in log.read_text()
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def visit(browser, address):
    """Opens the page at a width; at the end, nothing may have failed in it or been asked of another host."""
    contexts, problems = [], []

    def open_page(width: int = 1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 844}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: request.url.startswith((address, "blob:", "data:")) or problems.append(request.url))
        page.goto(address, wait_until="domcontentloaded")
        page.wait_for_selector("#result .xr-empty")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def fits(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@integration
def test_an_example_is_ranked_with_one_click(visit):
    page = visit()
    page.get_by_text("Dog and rain").click()
    page.wait_for_selector(".xr-ranking")
    scores = [float(text.replace("\N{MINUS SIGN}", "-")) for text in page.locator(".xr-score").all_inner_texts()]
    captions = page.locator(".xr-ranking .xr-caption").all_inner_texts()
    assert scores == sorted(scores, reverse=True) and len(scores) == 4
    assert sorted(captions) == sorted(page.locator("#captions textarea").input_value().splitlines())
    assert page.locator(".xr-best .xr-caption").inner_text() == captions[0]
    assert page.locator(".xr-picture img").evaluate("image => image.naturalWidth") > 500
    assert fits(page)


@integration
def test_a_long_sound_on_a_phone_in_the_dark(visit, long_sound):
    page = visit(390, color_scheme="dark")
    page.set_input_files("#sound input[type=file]", long_sound)
    page.wait_for_selector("#sound [aria-label='Clear'], #sound [title='Clear']")
    page.fill("#captions textarea", "<b>A siren</b> ${1+1} {{value}}")
    page.click("#rate")
    page.wait_for_selector(".xr-windows")
    assert page.locator(".xr-windows span").count() == 3 and page.locator(".xr-ranking").count() == 0
    numbers = page.locator(".xr-numbers").get_by_role("listitem")
    assert numbers.locator("span").all_inner_texts() == [f"{span} s" for span in ("0\u201310", "10\u201320", "20\u201325")]
    assert all(number.is_visible() and number.inner_text() for number in numbers.locator("b").all())
    assert page.locator(".xr-best .xr-caption").inner_text() == "<b>A siren</b> ${1+1} {{value}}"
    assert "3 windows" in page.locator(".xr-notes").inner_text() and "long walk.wav" in page.locator("#result").inner_text()
    page.wait_for_function("document.getElementById('result').getBoundingClientRect().top < 0.5 * innerHeight")
    assert max(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3])) < 60
    assert fits(page)


@integration
def test_problems_are_told_in_the_page(visit, tmp_path):
    page = visit(390)
    page.click("#rate")
    page.wait_for_selector("[role=alert]")
    assert "Add a sound" in page.locator("#result").inner_text()
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing of the kind")
    page.set_input_files("#sound input[type=file]", tmp_path / "broken.wav")
    page.wait_for_selector("#result .xr-empty")  # a new sound clears what was said about the one before
    page.fill("#captions textarea", "A dog barks")
    page.click("#rate")
    page.wait_for_selector("[role=alert]")
    text = page.locator("#result").inner_text()
    assert "Cannot decode broken.wav" in text and "/" not in text and "Traceback" not in text
    assert fits(page)
