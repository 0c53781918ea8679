"""The captioner's own score: captions of sounds, and how close they come to given texts."""

import csv
import json

import numpy as np
import pytest
import torch
from test_scoring import refusal
from transformers import BertConfig, BertModel, BertTokenizer

from xacle.cli import app
from xacle.core.tables import TableError
from xacle.scoring.captions import caption_table, generate_captions, load_captioner, load_sentence_model
from xacle.train import stage1_captioning


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory):
    """A tiny sentence-transformers model with random weights, as a folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    folder = tmp_path_factory.mktemp("sentences")
    torch.manual_seed(0)
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789,.'"]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *[f"##{x}" for x in letters]]))
    tokenizer = BertTokenizer(str(vocabulary))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    words = Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[words, Pooling(32)]).save(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def captioner(task, sentence_model, tmp_path_factory):
    """A stage 1 that has learnt its four captions, its metrics and its folder."""
    folder = tmp_path_factory.mktemp("captioner") / "run"
    options = {"validation_file": task.folder / "validation_captions.csv", "num_train_epochs": 60, "learning_rate": 3e-3}
    options |= {"rating_file": task.folder / "validation.csv", "rating_audio_dir": task.folder / "wav"}
    checkpoints = {"eval_strategy": "steps", "eval_steps": 60, "save_strategy": "steps", "save_steps": 60}
    arguments = task.arguments(folder, "train_captions", sentence_model=sentence_model, **options, **checkpoints)
    return folder, stage1_captioning.main(arguments)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_captions_name_new_sounds(task, captioner):
    folder, metrics = captioner
    rows = rows_of(task.folder / "validation_captions.csv")
    captions = generate_captions(*load_captioner(folder), [task.folder / "wav" / row["wav_file_name"] for row in rows], 3)
    right = np.mean([caption == row["text"] for caption, row in zip(captions, rows, strict=True)])
    assert right >= 0.75  # of four kinds of sound
    assert metrics["eval_loss"] < 1.0


def test_the_stage_1_score_is_the_similarity_of_caption_and_text(task, captioner, sentence_model):
    from sentence_transformers import SentenceTransformer

    folder, metrics = captioner
    rows = rows_of(folder / "captions.csv")
    rated = {
        (row["wav_file_name"], row["text"]): float(row["average_score"]) for row in rows_of(task.folder / "validation.csv")
    }
    assert [(row["wav_file_name"], row["text"]) for row in rows] == list(rated)
    encoder = SentenceTransformer(str(sentence_model))
    for row in rows[:3]:
        first, second = (encoder.encode(row[name]).astype(np.float64) for name in ("caption", "text"))
        cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
        assert float(row["pred_score"]) == pytest.approx(5 + 5 * cosine, abs=1e-4)
    assert metrics["eval_caption_SRCC"] > 0.3  # the right caption is as close as can be, whatever the sentence model


def test_the_command_captions_a_table_that_evaluate_reads(task, captioner, sentence_model, tmp_path):
    from typer.testing import CliRunner

    folder, _ = captioner
    table, output = task.folder / "validation.csv", tmp_path / "captions.csv"
    options = ["--model", folder, "--audio-dir", task.folder / "wav", "--sentence-model", sentence_model]
    run = CliRunner().invoke(app, ["caption", *map(str, [*options, "--input", table, "--output", output])])
    assert run.exit_code == 0, run.output
    assert output.read_text() == (folder / "captions.csv").read_text()
    run = CliRunner().invoke(app, ["caption", "--model", str(folder), "--audio", str(task.folder / "wav" / "0.wav")])
    assert run.stdout.strip() == "A siren rises and falls in pitch"


def test_scores_of_the_captioner_can_be_evaluated(task, captioner):
    from xacle.scoring.evaluation import evaluate

    folder, metrics = captioner
    evaluation = evaluate(folder / "captions.csv", task.folder / "validation.csv", resamples=0)
    assert evaluation.metrics["SRCC"] == pytest.approx(metrics["eval_caption_SRCC"], abs=1e-6)


def test_what_is_no_captioner_is_refused(task, captioner, tmp_path, transformers_log):
    with pytest.raises(ValueError, match="is a XacleForAlignmentScoring: its captions would mean nothing"):
        load_captioner(task.folder / "model")
    assert not transformers_log.records  # no report of transformers before the error
    with pytest.raises(ValueError, match=r"from 'nosuch/model': .*[^.]\. Without a network, .*--sentence-model FOLDER"):
        load_sentence_model("nosuch/model")
    table = tmp_path / "table.csv"
    table.write_text("wav_file_name,text\nmissing.wav,Rain\n")
    with pytest.raises(TableError, match="rows that cannot be captioned: 1"):
        caption_table(captioner[0], table, tmp_path, tmp_path / "out.csv")
    run = ("caption", "--model", captioner[0], "--input", table, "--output", tmp_path / "nowhere/out.csv")
    assert "does not exist" in refusal(*run)
    with pytest.raises(ValueError, match="would overwrite the input"):
        caption_table(captioner[0], table, tmp_path, table)


def test_captions_are_written_from_the_cache(task, sentence_model, tmp_path, monkeypatch):
    from xacle.modeling_xacle import XacleModel

    encode, calls = XacleModel.get_audio_states, []
    monkeypatch.setattr(XacleModel, "get_audio_states", lambda self, fbank: calls.append(len(fbank)) or encode(self, fbank))
    rated = {"rating_file": task.folder / "validation.csv", "rating_audio_dir": task.folder / "wav"}
    options = {**rated, "sentence_model": sentence_model, "validation_file": task.folder / "validation_captions.csv"}
    written = []
    for name, cache in (("cached", tmp_path / "cache"), ("uncached", "none")):
        stage1_captioning.main(task.arguments(tmp_path / name, "train_captions", feature_cache=cache, max_steps=2, **options))
        written.append((tmp_path / name / "captions.csv").read_text())
        assert name == "uncached" or sum(calls) == 24  # every clip once, rated ones among them
    assert written[0] == written[1]


def test_what_the_evaluation_needs_is_checked_before_the_training(task, sentence_model, tmp_path):
    rated = {"rating_file": tmp_path / "rated.csv", "rating_audio_dir": task.folder / "wav", "on_error": "skip"}
    rated["rating_file"].write_text((task.folder / "validation.csv").read_text() + "missing.wav,Rain,5\n")
    options = {**rated, "validation_file": task.folder / "validation_captions.csv", "max_steps": 1}
    with pytest.raises(ValueError, match="no sentence-transformers model can be loaded from 'nowhere/at/all'"):
        stage1_captioning.main(task.arguments(tmp_path / "a", "train_captions", sentence_model="nowhere/at/all", **options))
    assert not list((tmp_path / "a").glob("checkpoint-*"))
    stage1_captioning.main(task.arguments(tmp_path / "b", "train_captions", sentence_model=sentence_model, **options))
    assert "missing.wav" in (tmp_path / "b" / "rejected_rated.csv").read_text()
    assert json.loads((tmp_path / "b" / "run.json").read_text())["data"]["rated"]["pairs"] == 16


def test_evaluations_leave_no_trace_in_the_training(task, sentence_model, tmp_path):
    from safetensors.torch import load_file

    rated = {"rating_file": task.folder / "validation.csv", "rating_audio_dir": task.folder / "wav"}
    for name, options in (("with", {**rated, "sentence_model": sentence_model}), ("without", {})):
        captions = task.folder / "validation_captions.csv"
        arguments = task.arguments(tmp_path / name, "train_captions", validation_file=captions, max_steps=4, **options)
        stage1_captioning.main(arguments)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("with", "without"))
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    history = json.loads((tmp_path / "with" / "log_history.json").read_text())
    assert sum("eval_caption_SRCC" in entry for entry in history) >= 2
