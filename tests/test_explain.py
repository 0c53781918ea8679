"""`xacle explain`: what is taken away, and that it is found again in a model that has learnt what the words mean."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch
from test_scoring import command, refusal

from xacle.demo.tiny_models import CAPTIONS, make_sound
from xacle.processing_xacle import XacleFeatureExtractor
from xacle.scoring.explanation import explain, explanation_plot, without_each_phrase, without_each_word
from xacle.scoring.scorer import Scorer

EVENT = 32000  # samples, 2 s


def clip(first: str | None, second: str | None) -> np.ndarray:
    """Two events (or silence), one after the other: `[64000]`."""
    return np.concatenate([np.zeros(EVENT, np.float32) if name is None else make_sound(name, 2.0) for name in (first, second)])


@pytest.fixture(scope="module")
def trained(processor) -> Scorer:
    """A tiny scorer trained for some seconds to decide, by the caption, whether siren or rain occur anywhere."""
    from xacle.demo.tiny_models import tiny_config
    from xacle.modeling_xacle import XacleForAlignmentScoring

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = XacleForAlignmentScoring(tiny_config(processor, listnet_temperature=0.3, projector_dropout=0.0))
    scenes = [("siren", None), (None, "siren"), ("rain", None), (None, "rain"), ("siren", "rain"), ("rain", "siren")] * 2
    sounds = [rng.uniform(0.5, 1.0) * clip(*scene) for scene in scenes]
    rows = [(number, name) for number in range(len(scenes)) for name in ("siren", "rain")]
    labels = torch.tensor([9.0 if name in scenes[number] else 1.0 for number, name in rows])
    input_ids = processor(text=[CAPTIONS[name] for _, name in rows])["input_ids"]
    fbanks = processor.feature_extractor(sounds, sampling_rate=16000, return_tensors="pt")["input_features"]
    with torch.no_grad():
        states = model.model.get_audio_states(fbanks)[[number for number, _ in rows]]
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    model.train()
    for _ in range(200):
        chosen = torch.from_numpy(rng.choice(len(rows), 16, replace=False))
        model(input_ids[chosen], audio_states=states[chosen], labels=labels[chosen]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return Scorer(model, processor)


@pytest.mark.parametrize("scene", [("siren", "rain"), ("rain", "siren")])
def test_a_score_rests_on_the_event_that_the_caption_names(trained, scene):
    for place, named in enumerate(scene):
        explanation = explain(trained, clip(*scene), CAPTIONS[named], segment=2.0)
        event, other = explanation.segments[place], explanation.segments[1 - place]
        assert event.change < -2 and event.change < other.change - 2
        assert event.seconds == ((0.0, 2.0), (2.0, 4.0))[place]


def test_scores_are_those_of_the_pairs_without_the_part(trained):
    sound, text = clip("siren", "rain"), "A siren, then rain and wind"
    explanation = explain(trained, sound, text, segment=1.5)
    assert explanation.score == pytest.approx(float(trained.score([sound], [text])[0]), abs=1e-5)
    assert [segment.seconds for segment in explanation.segments] == [(0.0, 1.5), (1.5, 3.0), (3.0, 4.0)]
    silent = sound.copy()
    silent[24000:48000] = 0
    texts = ["Siren, then rain and wind", "A siren and wind", "A siren, then rain"]
    expected = trained.score([silent, sound, sound, sound], [text, *texts])
    found = [explanation.segments[1], explanation.words[0], *explanation.phrases[1:]]
    np.testing.assert_allclose([occlusion.score for occlusion in found], expected, atol=1e-5)
    np.testing.assert_allclose([occlusion.change for occlusion in found], expected - explanation.score, atol=1e-5)
    assert [word.part for word in explanation.words] == text.split()


def test_words_and_phrases_that_are_dropped():
    assert without_each_word("A dog barks") == [("A", "Dog barks"), ("dog", "A barks"), ("barks", "A dog")]
    assert without_each_word(" Rain ") == [] and without_each_phrase("A dog barks") == []
    assert without_each_phrase("A dog barks, rain falls, and a car honks AND stops") == [
        ("A dog barks", "Rain falls, and a car honks AND stops"),
        ("rain falls", "A dog barks, and a car honks AND stops"),
        ("a car honks", "A dog barks, rain falls AND stops"),
        ("stops", "A dog barks, rain falls, and a car honks"),
    ]
    assert without_each_phrase("Rain falls,") == []  # nothing after the comma
    assert without_each_word("sandy land") == [("sandy", "land"), ("land", "sandy")]


class RainStub:
    """Scores 9 where the caption speaks of rain and 3 elsewhere."""

    processor = SimpleNamespace(feature_extractor=XacleFeatureExtractor())

    def score_each(self, pairs, *_):
        return [SimpleNamespace(score=9.0 if "rain" in text.lower() else 3.0, error=None) for _, text in pairs]


def test_the_word_that_a_score_rests_on_is_found():
    explanation = explain(RainStub(), make_sound("rain", 2.0), "Much rain falls")
    assert [word.change for word in explanation.words] == [0.0, -6.0, 0.0]
    table = str(explanation)
    assert table.startswith("score 9.000: Much rain falls")
    (row,) = [line for line in table.splitlines() if line.startswith("rain ")]
    assert row.split() == ["rain", "3.000", "-6.000", "-" * 20]
    assert "without the phrase" not in table and "no phrase to drop" in table and "0.0-1.0 s" in table


def test_captions_are_no_formulas_to_the_picture(tmp_path):
    caption = "$5 fall, and rain $\\frac{ rings " + "on and on " * 30
    explanation_plot(tmp_path / "explain.svg", explain(RainStub(), make_sound("rain", 2.0), caption))
    assert "svg" in (tmp_path / "explain.svg").read_text()


def test_all_panels_of_the_plot_have_one_scale(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    explanation_plot(tmp_path / "explain.png", explain(RainStub(), make_sound("rain", 2.0), "Rain falls, and a dog barks"))
    (figure,) = drawn
    _, seconds, words, phrases = figure.axes
    assert seconds.get_ylim() == words.get_xlim() == phrases.get_xlim() == pytest.approx((-6.6, 6.6))
    assert "speaks for the match" in figure.legends[0].get_texts()[0].get_text()


def test_a_font_without_the_caption_is_warned_of_once(tmp_path, transformers_log, recwarn):
    explanation_plot(tmp_path / "explain.png", explain(RainStub(), make_sound("rain", 2.0), "\u72ac\u304c \u5420\u3048\u308b"))
    (record,) = transformers_log.records
    assert "explain.png' shows boxes for \u3048\u304c\u308b\u5420\u72ac: the font DejaVu Sans lacks them" in record.message
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


@pytest.mark.parametrize("seconds", [0.1, 12.0])
def test_short_and_long_sounds(trained, tmp_path, seconds):
    sound = make_sound("rain", seconds)
    explanation = explain(trained, sound, "Rain", segment=5.0)
    assert explanation.words == [] and len(explanation.segments) == (1 if seconds < 5 else 3)
    assert "no word to drop" in str(explanation)
    explanation_plot(tmp_path / "explain.png", explanation)
    assert (tmp_path / "explain.png").read_bytes().startswith(b"\x89PNG")
    assert len(explain(trained, sound, "Rain", 5.0, window="first").segments) == (1 if seconds < 5 else 2)


def test_wrong_arguments_are_refused(trained):
    for segment in (0, 0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"at least 0\.175 s long, got {segment}"):
            explain(trained, make_sound("rain", 1.0), "Rain", segment=segment)
    with pytest.raises(ValueError, match="the caption is empty"):
        explain(trained, make_sound("rain", 1.0), " ")
    with pytest.raises(FileNotFoundError, match="no audio file at"):
        explain(trained, "missing.wav", "Rain")


def test_the_command(tiny_folder, tmp_path):
    sf.write(tmp_path / "rain.wav", make_sound("rain", 3.0), 16000)
    arguments = ("explain", "--model", tiny_folder, "--audio", "rain.wav", "--text", "Rain falls, and a dog barks")
    result = command(*arguments, "--plot", "explain.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for words in ("without the word", "without the phrase", "with silence at", "a dog barks", "2.0-3.0 s"):
        assert words in result.stdout
    assert (tmp_path / "explain.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "Rain", "--segment", "0.1"], "Invalid value for '--segment'"),
        (["--text", "Rain", "--plot", "explain.wav"], "must end in .png or .pdf or .svg"),
        (
            ["--text", "Rain", "--plot", "nowhere/explain.png"],
            "'nowhere/explain.png' cannot be written: its folder does not exist",
        ),
        (["--text", " "], "the caption is empty"),
    ],
)
def test_wrong_calls_are_explained(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refusal("explain", "--model", "nowhere", "--audio", "missing.wav", *arguments)
