"""Any CLAP scores by the same path as ours: transformers' own cosines, each sound encoded once, nothing left to chance."""

import json

import numpy as np
import pytest
import soundfile as sf
import soxr
import torch
from test_scoring import command, read_scores, refusal, write_table
from test_teacher import tiny_clap_tokenizer
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor

from xacle.clap.encoder import ClapEncoder
from xacle.demo.tiny_models import CAPTIONS, make_sound, save_small_clap
from xacle.scoring import AlignmentReward, Scorer, best_of_n, evaluate, load_scorer
from xacle.scoring.clap_scorer import ClapScorer

RATE = 48000  # LAION's


def laion_clap(fusion: bool) -> tuple[ClapModel, ClapProcessor]:
    """A tiny CLAP in LAION's format: 10 s at 48 kHz, 64 mel bins; random weights."""
    text = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
    }
    audio = {
        "num_mel_bins": 64,
        "spec_size": 256,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "patch_embeds_hidden_size": 16,
        "hidden_size": 32,
        "enable_fusion": fusion,
        "fusion_type": "aff_2d" if fusion else None,
    }
    torch.manual_seed(0)
    model = ClapModel(ClapConfig(projection_dim=16, text_config=text, audio_config=audio)).eval()
    statistics = model.audio_model.audio_encoder.batch_norm
    statistics.running_mean.fill_(-30.0)
    statistics.running_var.fill_(400.0)
    extractor = ClapFeatureExtractor(truncation="fusion" if fusion else "rand_trunc")
    return model, ClapProcessor(extractor, tiny_clap_tokenizer())


@pytest.fixture(scope="module", params=[True, False], ids=["fused", "unfused"])
def clap_folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clap") / "clap"
    ClapEncoder(*laion_clap(request.param)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def unfused_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unfused") / "clap"
    ClapEncoder(*laion_clap(False)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Sounds of 10 s at 48 kHz with their captions, and a folder with them as a table."""
    folder = tmp_path_factory.mktemp("pairs")
    found = []
    for number, (name, caption) in enumerate(CAPTIONS.items()):
        sound = np.repeat(make_sound(name, 10.0), 3)
        sf.write(folder / f"{number}.wav", sound, RATE, subtype="FLOAT")
        found.append((f"{number}.wav", sound, caption))
    write_table(folder / "pairs.csv", [(name, caption) for name, _, caption in found])
    return folder, found


@torch.no_grad()
def reference(folder, sounds, captions) -> np.ndarray:
    """transformers' own cosines. Of a fused model, `is_longer` is false: the extractor marks a random clip as long."""
    model, processor = ClapModel.from_pretrained(folder).eval(), ClapProcessor.from_pretrained(folder)
    inputs = processor(text=captions, audio=sounds, sampling_rate=RATE, padding=True, return_tensors="pt")
    if "is_longer" in inputs:
        inputs["is_longer"] = torch.zeros_like(inputs["is_longer"])
    outputs = model(**inputs)
    return torch.cosine_similarity(outputs.audio_embeds, outputs.text_embeds).numpy()


def test_a_table_gets_transformers_own_cosines(clap_folder, pairs, tmp_path):
    folder, found = pairs
    output = tmp_path / "clap.csv"
    run = command("score", "--model", clap_folder, "--input", folder / "pairs.csv", "--output", output, "--device", "cpu")
    assert run.returncode == 0, run.stderr
    scores = [score for _, score in read_scores(output)]
    expected = reference(clap_folder, [sound for _, sound, _ in found], [caption for _, _, caption in found])
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert len({round(score, 3) for score in scores}) > 1
    assert json.loads((tmp_path / "clap.csv.json").read_text()) == {"model": str(clap_folder), "kind": "cosine"}


def test_what_other_programs_do_changes_a_cosine_as_the_docs_say(clap_folder, pairs):
    _, found = pairs
    sounds, captions = [sound for _, sound, _ in found], [caption for _, _, caption in found]
    base = reference(clap_folder, sounds, captions)
    fused = ClapModel.from_pretrained(clap_folder).config.audio_config.enable_fusion

    def change(others) -> float:
        return np.abs(reference(clap_folder, others, captions) - base).max()

    rounded = [(sound * 32767).astype(np.int16).astype(np.float32) / 32767 for sound in sounds]
    assert 1e-4 < change(rounded) < 4e-3
    resampled = [soxr.resample(soxr.resample(sound, RATE, 32000), 32000, RATE).astype(np.float32) for sound in sounds]
    assert 1e-6 < change(resampled) < 4e-4
    model, processor = ClapModel.from_pretrained(clap_folder).eval(), ClapProcessor.from_pretrained(clap_folder)

    @torch.no_grad()
    def own(sound, longer=None) -> float:
        inputs = processor(text=captions[:1], audio=[sound], sampling_rate=RATE, return_tensors="pt")
        if longer is not None:
            inputs["is_longer"] = torch.full_like(inputs["is_longer"], longer)
        outputs = model(**inputs)
        return torch.cosine_similarity(outputs.audio_embeds, outputs.text_embeds).item()

    if fused:
        assert abs(own(sounds[0], longer=True) - base[0]) > 0.3 and own(sounds[0], longer=False) == pytest.approx(
            base[0], abs=1e-6
        )
    else:
        crops = []
        for seed in range(10):
            np.random.seed(seed)
            crops.append(own(np.concatenate([sounds[1], sounds[0][: 4 * RATE]])))
        assert 0.01 < max(crops) - min(crops) < 0.1


def test_each_sound_is_encoded_once_and_long_ones_are_averaged_by_duration(clap_folder, pairs):
    _, found = pairs
    scorer = load_scorer(clap_folder, "cpu")
    assert isinstance(scorer, ClapScorer)
    encoded = []
    encode, scorer.encode = scorer.encode, lambda fbank: encoded.extend(fbank) or encode(fbank)
    long = np.concatenate([found[0][1], found[1][1][: 4 * RATE]])
    sound, windows = {"array": long, "sampling_rate": RATE}, [long[: 10 * RATE], long[10 * RATE :]]
    captions = [caption for _, _, caption in found]
    scores = scorer.score([sound] * 4, captions)
    assert len(encoded) == 2
    by_window = [reference(clap_folder, [window] * 4, captions) for window in windows]
    np.testing.assert_allclose(scores, (10 * by_window[0] + 4 * by_window[1]) / 14, atol=1e-6)
    np.testing.assert_array_equal(scores, scorer.score([sound] * 4, captions))
    np.testing.assert_allclose(scorer.score([sound] * 4, captions, window="first"), by_window[0], atol=1e-6)


def test_an_m2d_clap_scores_too(tmp_path):
    save_small_clap(list(CAPTIONS.values()), tmp_path / "m2d")
    scorer, clap = load_scorer(tmp_path / "m2d", "cpu"), ClapEncoder.from_pretrained(tmp_path / "m2d", "cpu")
    sounds, captions = [make_sound(name, 2.0 + number) for number, name in enumerate(CAPTIONS)], list(CAPTIONS.values())
    with torch.no_grad():
        expected = clap.similarity(sounds, captions).numpy()
    given = [{"array": sound, "sampling_rate": 16000} for sound in sounds]
    np.testing.assert_allclose(scorer.score(given, captions, batch_size=4), expected, atol=1e-6)
    barely_longer = {"array": make_sound("rain", 10.0 + 100 / 16000), "sampling_rate": 16000}  # by less than a frame
    assert np.isfinite(scorer.score([barely_longer], ["rain"]))


def test_rank_reward_evaluate_and_one_pair_take_it(unfused_folder, pairs, tmp_path):
    folder, found = pairs
    names, _, captions = zip(*found, strict=True)
    sounds = [str(folder / name) for name in names]
    scorer = load_scorer(unfused_folder, "cpu")
    scores = scorer.score(sounds, captions)
    one = command("score", "--model", unfused_folder, "--audio", sounds[0], "--text", captions[0], "--device", "cpu")
    assert float(one.stdout) == pytest.approx(scores[0], abs=1e-6)
    best = best_of_n(scorer, captions[1], sounds)[0]
    assert best.score == max(scorer.score(sounds, [captions[1]] * 4))
    assert AlignmentReward(unfused_folder, device="cpu")(captions, sounds) == pytest.approx(scores.tolist(), abs=1e-6)
    output, rated = (
        tmp_path / "clap.csv",
        write_table(tmp_path / "ratings.csv", [(name, n) for n, name in enumerate(names)], ("wav_file_name", "average_score")),
    )
    run = command("rank", *sounds, "--model", unfused_folder, "--text", "rain", "--device", "cpu", "--output", output)
    assert run.returncode == 0 and json.loads((tmp_path / "clap.csv.json").read_text())["kind"] == "cosine"
    output.write_text(output.read_text().replace(f"{folder}/", ""))
    assert list(evaluate(output, rated, resamples=0).metrics) == ["SRCC", "LCC", "KTAU"]


def test_what_a_clap_cannot_do_is_explained(unfused_folder, pairs, tmp_path):
    folder, _ = pairs
    table = ["--input", folder / "pairs.csv", "--output", tmp_path / "out.csv", "--device", "cpu"]
    assert "is a CLAP, which computes in float32" in refusal("score", "--model", unfused_folder, *table, "--dtype", "bfloat16")
    assert "not an xacle scorer" in refusal("explain", "--model", unfused_folder, "--audio", folder / "0.wav", "--text", "rain")
    with pytest.raises(ValueError, match="not an xacle scorer"):
        Scorer.from_pretrained(unfused_folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    assert "'bert', not an xacle scorer or a CLAP" in refusal("score", "--model", other, *table)
    assert sorted(tmp_path.glob("out*")) == []
