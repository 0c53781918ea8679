"""Corpora of the demo: simulated ratings follow the arithmetic they document, and any folder in XACLE's layout can be read."""

import csv
import json
import re

import numpy as np
import pytest
import soundfile as sf
import torch
from scipy.stats import spearmanr

from xacle.demo.audio_encoder import read_events, share_found, train_encoder
from xacle.demo.corpus import Corpus
from xacle.demo.generated_corpus import EVENT_CLASSES, draw_rated_pairs, event_clips, scene_clips, write_corpus
from xacle.demo.settings import Settings
from xacle.demo.simulated_listeners import make_panel, rate_pair
from xacle.scoring.metrics import alignment_metrics
from xacle.soundscapes.agreement import agreement
from xacle.soundscapes.events import Event
from xacle.soundscapes.random_numbers import generator
from xacle.soundscapes.scenes import Scene
from xacle.train.data import read_table


def test_listeners_differ_in_bias_spread_and_noise_and_more_of_them_agree_better():
    assert make_panel("a", 50, 1) == make_panel("a", 50, 1) != make_panel("a", 50, 2)
    panels = {name: make_panel(name, 120, 0) for name in "ab"}
    ids = {name: {listener.listener_id for listener in panel} for name, panel in panels.items()}
    assert not ids["a"] & ids["b"] and all(len(names) == 120 for names in ids.values())
    assert {len(name) for names in ids.values() for name in names} == {8}
    rng, panel = generator(1), panels["a"]
    for listener in panel[:5]:
        given = np.array([[listener.rate(value, rng) for _ in range(400)] for value in (4.0, 6.0)])
        assert given.mean() == pytest.approx(5 + listener.bias, abs=0.25)
        assert given[1].mean() - given[0].mean() == pytest.approx(2 * listener.spread, abs=0.4)
        assert given.std(axis=1).mean() == pytest.approx(np.hypot(listener.noise, 12**-0.5), rel=0.12)
    truth = [pair.agreement for pair in draw_rated_pairs(400, 2)]
    ceiling = {}
    for name, count in (("a", 4), ("b", 8)):
        ratings = [rate_pair(value, panels[name], count, rng) for value in truth]
        assert all(len({who for who, _ in given} & ids[name]) == count for given in ratings)
        ceiling[count] = alignment_metrics(truth, [np.mean([score for _, score in given]) for given in ratings])["SRCC"]
    assert 0.8 < ceiling[4] < ceiling[8] < 0.97
    assert 5 < np.mean(truth) < 6.5 and 0.2 < np.mean(np.array(truth) > 8) < 0.4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "XACLE_dataset"
    return folder, write_corpus(folder, seed=3, train=60, validation=30, test=40, captions=20)


def test_a_corpus_has_the_files_of_the_challenge(corpus):
    folder, summary = corpus
    assert json.loads((folder / "corpus.json").read_text()) == summary
    assert summary["ratings"] == "simulated"
    first, listeners = 0, {}
    for split, size, count in (("train", 60, 4), ("validation", 30, 4), ("test", 40, 8)):
        wavs = sorted((folder / "wav" / split).iterdir())
        assert [wav.name for wav in wavs] == [f"{index:05d}.wav" for index in range(first, first + size)]
        info = sf.info(wavs[0])
        assert (info.samplerate, info.channels, info.subtype, info.frames) == (16000, 1, "PCM_16", 160000)
        first += size
        rows = list(csv.DictReader((folder / f"meta_data/{split}.csv").open(newline="")))
        assert list(rows[0]) == ["wav_file_name", "text", "score", "listener_id"] and len(rows) == size * count
        assert {row["score"] for row in rows} <= {str(score) for score in range(11)}
        listeners[split] = {row["listener_id"] for row in rows}
        single = read_table(folder / f"meta_data/{split}.csv", folder / "wav" / split)
        average = read_table(folder / f"meta_data/{split}_average.csv", folder / "wav" / split)
        assert not single.problems and not average.problems and len(average.clips) == size
        assert (single.clips, single.captions) == (average.clips, average.captions)
        assert (single.labels == average.labels).all() and (average.labels * count % 1 == 0).all()
        assert 0.85 < summary[split]["noise_ceiling_srcc"] < 0.99
        assert summary[split]["mean_rating"] == pytest.approx(average.labels.mean(), abs=1e-4)
        assert len(listeners[split]) == summary[split]["listeners"]
    assert listeners["train"] & listeners["validation"]
    assert not listeners["test"] & (listeners["train"] | listeners["validation"])
    assert list(Corpus(folder).true_captions()) == [pair.wav_file_name for pair in Corpus(folder).pairs("test")]
    Corpus(folder).check()
    assert Corpus(folder).summary() == summary
    captions = read_table(folder / "meta_data/captions.csv", folder / "wav/captions", label="caption")
    assert len(captions) == len(captions.clips) == 20 and not captions.problems


def test_the_truth_of_a_corpus_is_kept_and_its_sounds_do_not_depend_on_its_size(corpus, tmp_path):
    folder, _ = corpus
    rows = [json.loads(line) for line in (folder / "scenes.jsonl").open()]
    assert [row["split"] for row in rows] == ["train"] * 60 + ["validation"] * 30 + ["test"] * 40 + ["captions"] * 20

    def scene_of(record: dict) -> Scene:
        events = (Event(event["kind"], event["count"], tuple(event["attributes"])) for event in record["events"])
        return Scene(tuple(events), record["relation"])

    for row in rows:
        scene, described = scene_of(row["scene"]), scene_of(row["described"])
        assert row["agreement"] == pytest.approx(agreement(scene, described), abs=1e-4)
        assert row["split"] != "captions" or scene == described
    write_corpus(tmp_path / "smaller", seed=3, train=3, validation=2, test=2, captions=1)
    for ours, theirs in (("train/00002", "train/00002"), ("test/00005", "test/00090"), ("captions/00007", "captions/00130")):
        assert (tmp_path / f"smaller/wav/{ours}.wav").read_bytes() == (folder / f"wav/{theirs}.wav").read_bytes()


def test_a_corpus_is_not_written_over_anything(corpus, tmp_path):
    with pytest.raises(FileExistsError, match="not an empty folder"):
        write_corpus(corpus[0])
    with pytest.raises(ValueError, match="at least two pairs"):
        write_corpus(tmp_path / "new", train=1)
    assert not (tmp_path / "new").exists()


def test_a_corpus_reveals_nothing_by_sound_or_caption_alone(tmp_path):
    """Neither the length of the caption nor the number of its events nor that of the sound's predicts the rating."""
    write_corpus(tmp_path / "corpus", seed=3, train=2, validation=2, test=400, captions=1)
    scenes = [json.loads(line) for line in (tmp_path / "corpus/scenes.jsonl").read_text().splitlines()]
    scenes = [scene for scene in scenes if scene["split"] == "test"]
    agreements = [scene["agreement"] for scene in scenes]
    for side in ("scene", "described"):
        events = [scene[side]["events"] for scene in scenes]
        details = [sum(len(event["attributes"]) + (event["count"] > 0) for event in several) for several in events]
        for cue in ([len(several) for several in events], details):
            assert abs(spearmanr(cue, agreements).statistic) < 0.15  # three standard errors


def test_the_encoder_learns_to_classify_events():
    new_clips = scene_clips(100, generator(0, 11))

    def found(clips_per_kind: int, steps: int) -> float:
        rng = generator(0, 10)
        model = train_encoder(event_clips(clips_per_kind, rng), steps, 0, rng)
        assert model.config.num_labels == len(EVENT_CLASSES)
        return share_found(model, new_clips)

    untrained = found(1, 1)
    assert untrained < 0.2 and found(6, 200) > untrained + 0.1


# ---- A corpus from elsewhere ----


@pytest.fixture
def folder(corpus, tmp_path):
    """A corpus folder to change: nothing but what is required."""
    from shutil import copytree

    copytree(corpus[0], tmp_path / "corpus")
    for name in ("corpus.json", "scenes.jsonl", "meta_data/test_captions.csv", "meta_data/train.csv"):
        (tmp_path / "corpus" / name).unlink()
    return tmp_path / "corpus"


def test_events_are_read_with_their_labels_and_a_split_that_is_held_out(folder):
    (folder / "events.csv").write_text(
        "wav_file_name,labels,split\ncaptions/00130.wav,dog;loud,\ncaptions/00131.wav,rain,train\ntest/00090.wav,dog,test\n"
    )
    train, test = read_events(Corpus(folder))
    assert train.classes == test.classes == ("dog", "loud", "rain")
    assert train.labels.tolist() == [[1, 1, 0], [0, 0, 1]] and test.labels.tolist() == [[1, 0, 0]]
    assert train.fbank.shape == (2, 998, 128) and torch.isfinite(train.fbank).all()
    (folder / "events.csv").write_text("wav_file_name,labels\ncaptions/00130.wav,dog\n")
    assert read_events(Corpus(folder))[1] is None


def test_what_a_corpus_lacks_is_reported_before_any_work(folder):
    assert Corpus(folder).true_captions() == {}
    assert Corpus(folder).summary() == {
        "captions": 20,
        "train": {"pairs": 60},
        "validation": {"pairs": 30},
        "test": {"pairs": 40},
    }
    with pytest.raises(FileNotFoundError, match=r"no events\.csv .* --audio-encoder"):
        Settings(corpus=folder).check()
    with pytest.raises(FileNotFoundError, match="no model folder at 'beats'"):
        Settings(corpus=folder, audio_encoder=folder.parent.joinpath("beats").relative_to(folder.parent)).check()
    (folder / "wav/test/00095.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"test_average\.csv' names 1 files that are not in .*among them 00095\.wav"):
        Settings(corpus=folder).check()
    table = folder / "meta_data/captions.csv"
    table.write_text(re.sub("text", "words", table.read_text(), count=1))
    with pytest.raises(ValueError, match=r"needs the column text or caption, .* it has 'wav_file_name', 'words'"):
        Corpus(folder).pairs("captions")
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"no table at '.*captions\.csv'"):
        Corpus(folder).pairs("captions")
    with pytest.raises(FileNotFoundError, match="no corpus folder"):
        Settings(corpus=folder / "nowhere").check()
