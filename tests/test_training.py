"""The three training stages, run as a user runs them, on a tiny model."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from datasets import Audio, Dataset
from safetensors.torch import load_file
from scipy import stats
from transformers import AutoModel, AutoTokenizer, Qwen2ForCausalLM, TrainingArguments

from xacle.configuration_xacle import XacleConfig
from xacle.conversion.beats import convert_beats
from xacle.modeling_beats import BeatsForAudioClassification
from xacle.modeling_xacle import XacleForAlignmentScoring, XacleForConditionalGeneration, XacleModel
from xacle.processing_xacle import XacleProcessor
from xacle.scoring.calibration import fit_affine
from xacle.scoring.scorer import Scorer
from xacle.train import stage1_captioning, stage2_pseudo_labels, stage3_ratings
from xacle.train.batches import PairCollator
from xacle.train.lora_and_freezing import special_token_ids, train_token_rows
from xacle.train.trainer import AlignmentTrainer

GOLDEN = Path(__file__).parent / "golden"
ALL_STAGES = [
    pytest.param(stage1_captioning, "train_captions", {"validation_file": None}, id="stage 1"),
    pytest.param(stage2_pseudo_labels, "pseudo_labels", {}, id="stage 2"),
    pytest.param(stage3_ratings, "ratings", {}, id="stage 3"),
]


def history(folder):
    return json.loads((folder / "log_history.json").read_text())


def losses(folder):
    return [entry["loss"] for entry in history(folder) if "loss" in entry]


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def stage3(task, tmp_path_factory):
    """A finished stage 3: its folder and the metrics it returned."""
    folder = tmp_path_factory.mktemp("stage3") / "run"
    schedule = {"num_train_epochs": 150, "warmup_steps": 0.1, "learning_rate": 7e-4}
    checkpoints = {"eval_strategy": "steps", "eval_steps": 50, "save_strategy": "steps", "save_steps": 50}
    loss = {"listnet_temperature": 0.3, "freq_mask_width": 0, "time_mask_width": 0}
    return folder, stage3_ratings.main(task.arguments(folder, **schedule, **checkpoints, **loss))


# --- Stage 3 ---------------------------------------------------------------------------------------------------------------


def test_stage_3_learns_to_rank_new_clips(task, stage3):
    folder, metrics = stage3
    assert metrics["eval_SRCC"] > 0.6
    with (task.folder / "validation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    sounds = [task.folder / "wav" / row["wav_file_name"] for row in rows]
    scores = Scorer.from_pretrained(folder).score(sounds, [row["text"] for row in rows])
    ratings = [float(row["average_score"]) for row in rows]
    assert stats.spearmanr(scores, ratings).statistic == pytest.approx(metrics["eval_SRCC"], abs=1e-6)
    # Calibrated: on the validation pairs, no affine map fits better than the model's own.
    assert fit_affine(scores, ratings) == (pytest.approx(1, abs=1e-3), pytest.approx(0, abs=1e-2))
    assert np.mean((scores - ratings) ** 2) == pytest.approx(metrics["eval_MSE"], rel=1e-4)


def test_the_best_checkpoint_is_the_one_that_is_saved(stage3):
    folder, metrics = stage3
    found = [entry["eval_SRCC"] for entry in history(folder) if "eval_SRCC" in entry]
    assert metrics["eval_SRCC"] == pytest.approx(max(found), abs=1e-6)


def test_what_was_run_stands_beside_the_weights(task, stage3):
    record = json.loads((stage3[0] / "run.json").read_text())
    assert record["arguments"]["TrainingArguments"]["learning_rate"] == 7e-4
    assert record["arguments"]["DataArguments"]["train_file"] == str(task.folder / "ratings.csv")
    assert record["data"]["train"]["pairs"] == 32 and record["data"]["train"]["checksum"].startswith("sha256:")
    assert (
        record["versions"]["torch"] == torch.__version__ and record["validation_metrics"]["eval_SRCC"] == stage3[1]["eval_SRCC"]
    )
    checkpoint = max(stage3[0].glob("checkpoint-*"))
    assert json.loads((checkpoint / "run.json").read_text())["stage"] == "stage 3: ratings"


def test_fine_tuning_goes_on_from_a_calibrated_model(task, stage3, tmp_path):
    metrics = stage3_ratings.main(
        task.arguments(tmp_path / "run", model_name_or_path=stage3[0], max_steps=2, learning_rate=1e-5)
    )
    assert metrics["eval_SRCC"] > 0.6


def test_the_first_loss_is_listnet_of_the_models_own_scores(task, tmp_path, processor):
    arguments = task.arguments(
        tmp_path / "run", max_steps=1, per_device_train_batch_size=32, freq_mask_width=0, time_mask_width=0
    )
    stage3_ratings.main([*arguments, "--model_config", '{"projector_dropout": 0.0}'])
    with (task.folder / "ratings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    sounds = [task.folder / "wav" / row["wav_file_name"] for row in rows]
    scores = Scorer.from_pretrained(task.folder / "model").score(sounds, [row["text"] for row in rows])
    prediction = (scores.astype(np.float64) - 5) / 5
    target = np.exp((np.array([float(row["average_score"]) for row in rows]) - 5) / 5)
    expected = -(target / target.sum() * (prediction - np.log(np.exp(prediction).sum()))).sum()
    assert losses(tmp_path / "run")[0] == pytest.approx(expected, rel=1e-4)


def test_gradient_accumulation_averages_lists_and_does_not_scale_them(task, tmp_path):
    options = {"max_steps": 1, "freq_mask_width": 0, "time_mask_width": 0, "model_config": '{"projector_dropout": 0.0}'}
    for name, batch, accumulation in (("one", 8, 1), ("four", 8, 4)):
        accumulated = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        stage3_ratings.main(task.arguments(tmp_path / name, **options, **accumulated))
    one, four = (history(tmp_path / name)[0] for name in ("one", "four"))
    assert one["loss"] == pytest.approx(four["loss"], rel=0.2) and one["loss"] == pytest.approx(np.log(8), rel=0.2)
    assert four["grad_norm"] < 1.5 * one["grad_norm"]


def test_listeners_ratings_can_be_trained_on(task, tmp_path):
    with (task.folder / "ratings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    table = tmp_path / "listeners.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["wav_file_name", "text", "score", "listener_id"])
        for row in rows:
            score = float(row["average_score"])
            writer.writerows([row["wav_file_name"], row["text"], score + change, who] for change, who in ((-1, "x"), (1, "y")))
    options = {"train_file": table, "listener_screening": 5, "listener_standardization": "true", "num_train_epochs": 1}
    stage3_ratings.main(task.arguments(tmp_path / "run", **options))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["train"]["pairs"] == 32


def test_evaluation_keeps_pairs_that_do_not_fill_a_batch(task, tmp_path, monkeypatch):
    seen = []
    predict = AlignmentTrainer.predict

    def spy(self, *args, **kwargs):
        prediction = predict(self, *args, **kwargs)
        seen.append(prediction.predictions.shape)
        return prediction

    monkeypatch.setattr(AlignmentTrainer, "predict", spy)
    stage3_ratings.main(task.arguments(tmp_path / "run", max_steps=1, per_device_eval_batch_size=5))  # 5 + 5 + 5 + 1
    assert seen == [(16,)]


def test_spec_augment_works_in_training_only(task, tmp_path, monkeypatch):
    from xacle import modeling_xacle

    calls = []
    augment = modeling_xacle.spec_augment
    monkeypatch.setattr(
        modeling_xacle, "spec_augment", lambda fbank, *widths: calls.append((len(fbank), *widths)) or augment(fbank, *widths)
    )
    stage3_ratings.main(task.arguments(tmp_path / "run", max_steps=2))
    assert len(calls) == 2 and calls[0][1:] == (15, 30)
    assert XacleConfig.from_pretrained(tmp_path / "run").freq_mask_width == 15


# --- All stages ------------------------------------------------------------------------------------------------------------


def test_the_stages_build_on_each_other(task, tmp_path):
    stage1 = task.arguments(tmp_path / "1", "train_captions", validation_file=task.folder / "validation_captions.csv")
    first = stage1_captioning.main(stage1)
    assert first["eval_loss"] < history(tmp_path / "1")[0]["loss"]
    stage2_pseudo_labels.main(task.arguments(tmp_path / "2", "pseudo_labels", model_name_or_path=tmp_path / "1"))
    stage3_ratings.main(task.arguments(tmp_path / "3", model_name_or_path=tmp_path / "2", max_steps=1, learning_rate=0))
    first, second, third = (weights(tmp_path / stage) for stage in "123")
    shared = [name for name in second if not name.startswith("score_head")]
    assert all(torch.equal(second[name], third[name]) for name in second)  # nothing is lost between the stages
    trained = [name for name in shared if not torch.equal(first[name], second[name])]
    assert sorted(shared) == sorted(first) and all("audio_tower" not in name for name in trained) and trained
    AutoModel.from_pretrained(tmp_path / "3", trust_remote_code=True)


@pytest.mark.parametrize(("stage", "table", "options"), ALL_STAGES)
def test_with_the_cache_the_encoder_does_not_run_and_the_losses_are_the_same(
    stage, table, options, task, tmp_path, monkeypatch
):
    options = {**options, "freq_mask_width": 0, "time_mask_width": 0} if stage is stage3_ratings else options
    encode, calls = XacleModel.get_audio_states, []
    monkeypatch.setattr(XacleModel, "get_audio_states", lambda self, fbank: calls.append(len(fbank)) or encode(self, fbank))
    cache = tmp_path / "cache"
    stage.main(task.arguments(tmp_path / "a", table, feature_cache=cache, num_train_epochs=1, **options))
    assert sum(calls) == (16 if options.get("validation_file", "") is None else 24)  # once a clip, before the first step
    calls.clear()
    stage.main(task.arguments(tmp_path / "b", table, feature_cache=cache, **options))
    assert not calls
    stage.main(task.arguments(tmp_path / "c", table, feature_cache="none", **options))
    assert calls
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "c"), abs=1e-5)


def test_a_half_precision_cache_hardly_moves_the_losses(task, tmp_path):
    for name, dtype in (("exact", "float32"), ("half", "float16")):
        stage2_pseudo_labels.main(task.arguments(tmp_path / name, "pseudo_labels", feature_cache_dtype=dtype))
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "exact"), abs=1e-3)


def test_a_model_is_put_together_from_beats_and_a_language_model(task, tmp_path):
    beats = convert_beats(GOLDEN / "beats_tiny_b.pt", tmp_path / "beats")  # a fine-tuned one, with a classifier
    language_model = tmp_path / "llm"
    config = XacleConfig.from_pretrained(task.folder / "model").text_config
    torch.manual_seed(3)
    decoder = Qwen2ForCausalLM(config)
    decoder.save_pretrained(language_model)
    tokenizer = AutoTokenizer.from_pretrained(task.folder / "model")
    tokenizer.save_pretrained(language_model)
    options = {"model_name_or_path": None, "audio_encoder": beats, "language_model": language_model, "max_steps": 1}
    stage3_ratings.main(task.arguments(tmp_path / "run", feature_cache=tmp_path / "cache", **options))
    trained = weights(tmp_path / "run")
    encoder = BeatsForAudioClassification.from_pretrained(beats).beats.state_dict()
    assert all(torch.equal(trained[f"model.audio_tower.{name}"], tensor) for name, tensor in encoder.items())
    before = decoder.model.state_dict()["layers.0.mlp.up_proj.weight"]
    after = trained["model.language_model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(after, before) and torch.allclose(after, before, atol=0.01)


# --- In a notebook -----------------------------------------------------------------------------------------------------------


def test_the_notebook_of_the_guide_trains_a_scorer(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(task.folder / "model", "xacle-tmu")
    for name, clip in (("dog", 0), ("rain", 1)):
        shutil.copy(task.folder / "wav" / f"{clip}.wav", f"{name}.wav")
    page = (Path(__file__).parents[1] / "docs/train.md").read_text()
    [code] = re.findall(r"## In a notebook\n.*?```python\n(.*?)```", page, flags=re.DOTALL)
    exec(code, {})
    before, after = weights(tmp_path / "xacle-tmu"), weights(tmp_path / "notebook-scorer")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("audio_tower" in name for name in changed)
    assert np.isfinite(Scorer.from_pretrained("notebook-scorer").score(["dog.wav"], ["A dog barks"])).all()


@pytest.fixture
def pairs(task):
    """The training table as a plain dataset's columns."""
    with (task.folder / "ratings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    files = [str(task.folder / "wav" / row["wav_file_name"]) for row in rows]
    return {"audio": files, "text": [row["text"] for row in rows], "score": [float(row["average_score"]) for row in rows]}


def notebook_trainer(task, output_dir, pairs, **options):
    settings = {"max_steps": 2, "per_device_train_batch_size": 8, "logging_steps": 1, "learning_rate": 1e-4, "use_cpu": True}
    arguments = TrainingArguments(str(output_dir), disable_tqdm=True, save_strategy="no", **settings)
    model = XacleForAlignmentScoring.from_pretrained(task.folder / "model")
    processor = XacleProcessor.from_pretrained(task.folder / "model")
    return AlignmentTrainer(model, arguments, train_dataset=pairs, processing_class=processor, **options)


def test_every_form_of_a_plain_dataset_trains_alike(task, pairs, tmp_path):
    files = Dataset.from_dict(pairs)
    sounds = [{"array": sf.read(file, dtype="float32")[0], "sampling_rate": 16000} for file in pairs["audio"]]
    datasets = {
        "files": files,
        "features": files.cast_column("audio", Audio()),
        "stored": files.map(lambda pair: {"audio": {"bytes": Path(pair["audio"]).read_bytes(), "path": None}}),
        "list": [dict(zip(pairs, values, strict=True)) for values in zip(*pairs.values(), strict=True)],
        "arrays": [
            {"audio": sound, "text": text, "score": score}
            for sound, text, score in zip(sounds, pairs["text"], pairs["score"], strict=True)
        ],
    }
    found = {}
    for name, dataset in datasets.items():
        trainer = notebook_trainer(task, tmp_path / name, dataset, eval_dataset=dataset)
        trainer.train()
        found[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert -1 <= trainer.evaluate()["eval_SRCC"] <= 1
    for name, losses_of_form in found.items():
        assert len(losses_of_form) == 2 and losses_of_form == pytest.approx(found["files"], abs=1e-4), name


def test_a_last_list_of_one_pair_is_left_out(task, pairs, tmp_path):
    odd = Dataset.from_dict({name: values[:9] for name, values in pairs.items()})
    trainer = notebook_trainer(task, tmp_path / "run", odd)
    assert len(trainer.get_train_dataloader()) == 1
    trainer.train()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": None}, "train_dataset has no column score; it has audio, text"),
        ({"audio": None, "text": None}, "train_dataset has no column audio or text; it has score"),
        ({"score": [5.0] * 30 + [73.0, 1.0]}, r"train_dataset, row 30: score must be a number from 0 to 10, got 73\.0"),
    ],
)
def test_a_plain_dataset_that_cannot_be_used_is_refused(change, message, task, pairs, tmp_path):
    columns = {name: values for name, values in {**pairs, **change}.items() if values is not None}
    with pytest.raises(ValueError, match=message):
        notebook_trainer(task, tmp_path / "run", Dataset.from_dict(columns))


# --- LoRA and freezing -------------------------------------------------------------------------------------------------------


def test_freezing_leaves_the_frozen_weights_as_they_are(task, tmp_path):
    frozen = {"freeze_language_model": "true", "freeze_audio_encoder": "true"}
    stage3_ratings.main(task.arguments(tmp_path / "llm", **frozen))
    stage3_ratings.main(task.arguments(tmp_path / "embeddings", freeze_token_embeddings="true"))
    stage3_ratings.main(task.arguments(tmp_path / "encoder", freeze_audio_encoder="false", max_steps=2, learning_rate=1e-4))
    before = weights(task.folder / "model")
    changed = {
        run: {name for name, tensor in weights(tmp_path / run).items() if not torch.equal(tensor, before[name])}
        for run in ("llm", "embeddings", "encoder")
    }
    embeddings = "model.language_model.embed_tokens.weight"
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in changed["llm"]} == {
        "model.multi_modal_projector",
        "score_head.out_proj",
    }
    assert any("language_model.layers" in name for name in changed["embeddings"])
    config = XacleConfig.from_pretrained(tmp_path / "embeddings")
    moved = (weights(tmp_path / "embeddings")[embeddings] != before[embeddings]).any(-1).nonzero().flatten().tolist()
    assert config.score_token_id in moved and set(moved) <= {getattr(config, name) for name in config.special_token_names}
    assert not any("audio_tower" in name for name in changed["embeddings"])
    assert any("audio_tower" in name for name in changed["encoder"]) and embeddings in changed["encoder"]


def test_lora_trains_adapters_and_new_tokens_and_merges_into_a_normal_folder(task, tmp_path):
    stage3_ratings.main(task.arguments(tmp_path / "run", lora_r=4))
    before, after = weights(task.folder / "model"), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    change = after[name] - before[name]
    assert 0 < torch.linalg.matrix_rank(change, rtol=1e-3) <= 4
    config = XacleConfig.from_pretrained(tmp_path / "run")
    rows = (
        (after["model.language_model.embed_tokens.weight"] - before["model.language_model.embed_tokens.weight"]).abs().sum(-1)
    )
    moved = set(rows.nonzero().flatten().tolist())
    assert config.score_token_id in moved and moved <= {getattr(config, name) for name in config.special_token_names}
    assert torch.equal(
        after["model.audio_tower.encoder.layers.0.fc1.weight"], before["model.audio_tower.encoder.layers.0.fc1.weight"]
    )


def test_an_adapter_alone_loads_onto_its_base(task, tmp_path):
    from peft import PeftModel

    stage3_ratings.main(task.arguments(tmp_path / "run", lora_r=2, lora_output="adapter"))
    assert not (tmp_path / "run" / "model.safetensors").exists()
    base = XacleForAlignmentScoring.from_pretrained(task.folder / "model")
    adapted = PeftModel.from_pretrained(base, tmp_path / "run").eval()
    loaded = AutoModel.from_pretrained(tmp_path / "run", trust_remote_code=True).eval()
    processor = Scorer.from_pretrained(task.folder / "model").processor
    inputs = processor(text=["Rain"], audio=np.zeros(16000, np.float32), sampling_rate=16000)
    with torch.no_grad():
        scores = [
            model(**inputs).scores
            for model in (adapted, loaded, XacleForAlignmentScoring.from_pretrained(task.folder / "model").eval())
        ]
    assert torch.allclose(scores[0], scores[1], atol=1e-5) and not torch.allclose(scores[0], scores[2], atol=1e-3)


def test_lora_for_captioning_keeps_the_tied_head_tied(task, tmp_path):
    stage1_captioning.main(task.arguments(tmp_path / "run", "train_captions", validation_file=None, lora_r=2))
    model = XacleForConditionalGeneration.from_pretrained(tmp_path / "run")
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(("stage", "table", "options"), ALL_STAGES)
def test_trained_token_rows_are_resumed_like_all_other_weights(stage, table, options, task, tmp_path):
    options = {**options, "freeze_token_embeddings": "true", "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    options |= {"eval_strategy": "no", "load_best_model_at_end": "false", "per_device_train_batch_size": 4}
    arguments = task.arguments(tmp_path / "run", table, **options)
    stage.main(arguments)
    whole = weights(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    stage.main([*arguments, "--resume_from_checkpoint", "last"])
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(tmp_path / "run").items())
    assert whole.keys() >= weights(task.folder / "model").keys() - {"score_head.out_proj.weight", "score_head.out_proj.bias"}


def test_token_rows_get_the_gradient_they_would_have_in_the_whole_table(make_scorer, processor):
    inputs = processor(text=["Rain", "A dog barks"])
    inputs["audio_states"] = torch.randn(2, 100, 48, generator=torch.Generator().manual_seed(0))
    model = make_scorer().eval()
    rows = special_token_ids(model.config)
    table = model.get_input_embeddings().weight
    whole = model(**inputs, labels=torch.tensor([2.0, 8.0])).loss
    (gradient,) = torch.autograd.grad(whole, [table])
    train_token_rows(model, rows)
    partial = model(**inputs, labels=torch.tensor([2.0, 8.0])).loss
    partial.backward()
    assert partial.item() == whole.item() and table.grad is None
    assert torch.equal(model.get_input_embeddings().rows.grad, gradient[rows])


# --- Compiled training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "table", "options"), ALL_STAGES)
def test_a_compiled_model_sees_one_shape_and_learns_the_same(stage, table, options, task, tmp_path, monkeypatch):
    collate, shapes = PairCollator.__call__, []

    def spy(self, examples):
        inputs = collate(self, examples)
        shapes.append({name: tuple(value.shape) for name, value in inputs.items()})
        return inputs

    monkeypatch.setattr(PairCollator, "__call__", spy)
    options = {**options, "num_train_epochs": 1, "eval_strategy": "no", "load_best_model_at_end": "false"}
    options |= {"freq_mask_width": 0, "time_mask_width": 0} if stage is stage3_ratings else {}
    options |= {"validation_file": None, "model_config": '{"projector_dropout": 0.0}'}  # masks depend on the number of clips
    stage.main(task.arguments(tmp_path / "plain", table, **options))
    shapes.clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = {"torch_compile": "true", "torch_compile_backend": "aot_eager"}
    stage.main(task.arguments(tmp_path / "compiled", table, **options, **compiled))
    assert all(shape == shapes[0] for shape in shapes) and len(shapes) > 1
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] < 8  # pieces of the model, not shapes
    assert shapes[0]["input_ids"] == (8, 128) and shapes[0]["audio_states"][0] == 8
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)
    assert weights(tmp_path / "compiled").keys() == weights(tmp_path / "plain").keys()


# --- What goes wrong -----------------------------------------------------------------------------------------------------


def test_a_used_output_folder_is_not_overwritten(task, stage3):
    with pytest.raises(FileExistsError, match="--resume-from-checkpoint last"):
        stage3_ratings.main(task.arguments(stage3[0]))


def test_resuming_a_finished_run_changes_nothing(task, tmp_path):
    arguments = task.arguments(tmp_path / "run", num_train_epochs=1)
    stage3_ratings.main(arguments)
    before = weights(tmp_path / "run")
    stage3_ratings.main([*arguments, "--resume_from_checkpoint", "last"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path / "run").items())


def test_resuming_with_another_table_is_refused(task, tmp_path):
    arguments = task.arguments(tmp_path / "run", num_train_epochs=1)
    stage3_ratings.main(arguments)
    shorter = tmp_path / "shorter.csv"
    shorter.write_text("".join((task.folder / "ratings.csv").read_text().splitlines(keepends=True)[:-4]))
    with pytest.raises(ValueError, match=r"cannot be continued: .*train table: .*32 pairs\), now .*28 pairs\)"):
        stage3_ratings.main([*arguments, "--resume_from_checkpoint", "last", "--train_file", str(shorter)])


def test_resuming_with_other_settings_is_refused_and_leaves_the_record_alone(task, tmp_path):
    arguments = task.arguments(tmp_path / "run", num_train_epochs=1)
    stage3_ratings.main(arguments)
    record = (tmp_path / "run" / "run.json").read_text()
    changes = (["--learning-rate", "0.25"], ["--lora-r", "2"], ["--seed", "7"], ["--num-train-epochs", "3.0"])
    for change in (*changes, ["--warmup-steps", "3.0"], ["--max-grad-norm", "0.5"]):
        with pytest.raises(ValueError, match=rf"cannot be continued: .*{change[0]}: .*, now {change[1]}"):
            stage3_ratings.main([*arguments, "--resume_from_checkpoint", "last", *change])
    assert (tmp_path / "run" / "run.json").read_text() == record


def test_a_start_that_failed_does_not_block_the_next(task, tmp_path):
    with pytest.raises(ValueError, match="do not fill one batch"):
        stage3_ratings.main(task.arguments(tmp_path / "run", per_device_train_batch_size=64))
    stage3_ratings.main(task.arguments(tmp_path / "run", max_steps=1))


def test_evaluating_by_steps_also_saves_by_steps(task, tmp_path):
    stage3_ratings.main(task.arguments(tmp_path / "run", eval_strategy="steps", eval_steps=3, metric_for_best_model="srcc"))
    assert [entry["step"] for entry in history(tmp_path / "run") if "eval_SRCC" in entry][:2] == [3, 6]
    assert (tmp_path / "run" / "checkpoint-6").is_dir()


def test_a_moved_run_still_ends_with_its_best_weights(task, tmp_path):
    options = {"num_train_epochs": 4, "save_total_limit": 4, "learning_rate": 1e-2}
    stage3_ratings.main(task.arguments(tmp_path / "run", **options))
    before = weights(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    for checkpoint in sorted((tmp_path / "moved").glob("checkpoint-*"), key=lambda folder: int(folder.name[11:]))[-1:]:
        shutil.rmtree(checkpoint)  # as if stopped before the last epoch
    resumed = [*task.arguments(tmp_path / "moved", **options), "--resume_from_checkpoint", "last"]
    metrics = stage3_ratings.main(resumed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path / "moved").items())
    assert metrics["eval_SRCC"] == json.loads((tmp_path / "moved" / "run.json").read_text())["best_metric"]
    file = tmp_path / "moved" / "checkpoint-16" / "trainer_state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "best_global_step": 1}))
    with pytest.raises(FileNotFoundError, match="the best checkpoint so far"):
        stage3_ratings.main(resumed)


def test_secrets_do_not_stand_in_the_record(task, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["xacle", "--hub_token", "hf_secret", "--push_to_hub_token=hf_secret", "--seed", "1"])
    stage3_ratings.main(task.arguments(tmp_path / "run", max_steps=1))
    assert "hf_secret" not in (tmp_path / "run" / "run.json").read_text()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["command"][-2:] == ["--seed", "1"]


def test_masks_set_by_the_models_configuration_count_too(task, tmp_path, monkeypatch):
    from xacle import modeling_xacle

    calls = []
    augment = modeling_xacle.spec_augment
    monkeypatch.setattr(modeling_xacle, "spec_augment", lambda *given: calls.append(given[1:]) or augment(*given))
    options = {"model_config": '{"freq_mask_width": 5}', "max_steps": 2}
    stage2_pseudo_labels.main(task.arguments(tmp_path / "run", "pseudo_labels", **options))
    assert calls == [(5, 0)] * 2


def test_without_validation_the_last_weights_are_kept_uncalibrated(task, tmp_path):
    assert stage3_ratings.main(task.arguments(tmp_path / "run", validation_file=None, num_train_epochs=1)) == {}
    assert XacleConfig.from_pretrained(tmp_path / "run").score_scale == 5.0


def test_rows_that_are_left_out_are_written_down(task, tmp_path):
    table = tmp_path / "ratings.csv"
    damaged = task.folder / "wav" / "damaged.wav"
    damaged.write_bytes((task.folder / "wav" / "0.wav").read_bytes()[:44] + np.full(500, np.nan, "<f4").tobytes())
    table.write_text((task.folder / "ratings.csv").read_text() + "missing.wav,Rain,5\n")
    with pytest.raises(ValueError, match=r"line 34: no audio file at .*missing\.wav"):
        stage3_ratings.main(task.arguments(tmp_path / "run", train_file=table))
    stage3_ratings.main(task.arguments(tmp_path / "run", train_file=table, on_error="skip", max_steps=1))
    with (tmp_path / "run" / "rejected_train.csv").open(newline="") as file:
        rejected = list(csv.DictReader(file))
    assert [(row["line"], row["wav_file_name"]) for row in rejected] == [("34", "missing.wav")]


@pytest.mark.parametrize("cache", ["cached", "none"])
def test_clips_that_only_fail_in_decoding_are_named_before_training(cache, task, tmp_path):
    sf.write(task.folder / "wav" / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    table = tmp_path / "ratings.csv"
    table.write_text((task.folder / "ratings.csv").read_text() + "nan.wav,Rain,5\nmissing.wav,Rain,5\nnan.wav,Hail,2\n")
    options = {"train_file": table, "on_error": "skip", "max_steps": 1} | ({"feature_cache": "none"} if cache == "none" else {})
    with pytest.raises(ValueError, match=r"line 35: no audio file"):
        stage3_ratings.main(task.arguments(tmp_path / "run", **{**options, "on_error": "stop"}))
    stage3_ratings.main(task.arguments(tmp_path / "run", **options))
    with (tmp_path / "run" / "rejected_train.csv").open(newline="") as file:
        rejected = [(row["line"], row["wav_file_name"], row["text"], row["average_score"]) for row in csv.DictReader(file)]
    found = [("34", "nan.wav", "Rain", "5.0"), ("35", "missing.wav", "Rain", "5"), ("36", "nan.wav", "Hail", "2.0")]
    assert rejected == found
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["train"]["pairs"] == 32
    table.write_text((task.folder / "ratings.csv").read_text() + "nan.wav,Rain,5\n")
    with pytest.raises(ValueError, match=r"line 34: .*nan\.wav.* holds NaN"):
        stage3_ratings.main(task.arguments(tmp_path / "other", **{**options, "on_error": "stop"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_device_train_batch_size": 64}, "32 training pairs in .* do not fill one batch of 64"),
        ({"per_device_train_batch_size": 1}, "a list needs at least two pairs"),
        ({"train_file": None}, "pass --train-file"),
        ({"model_name_or_path": None}, "pass --model-name-or-path, or --audio-encoder and --language-model"),
        ({"model_name_or_path": "nowhere/at/all"}, "no model folder at"),
        ({"model_config": "{broken"}, "must be JSON"),
        ({"model_config": '{"projector_type": "mlp"}'}, "projector_type"),
        ({"validation_file": "TRAIN"}, "16 of 16 validation clips are also trained on"),
        ({"model_config": '{"temperature": 0.5}'}, "--model-config: XacleConfig has no field temperature"),
        ({"model_config": '{"text_config": {}}'}, "--model-config: text_config come"),
        ({"train_file": "EQUAL"}, r"all labels of '.*equal\.csv' are equal \(7\.0\): nothing can be ranked"),
        ({"validation_audio_dir": "nowhere"}, r"is the audio folder right\? It is 'nowhere' \(--validation-audio-dir\)"),
        ({"resume_from_checkpoint": "nowhere"}, "no checkpoint at 'nowhere'"),
        ({"metric_for_best_model": "loss"}, "must be one of SRCC, LCC, KTAU, MSE"),
        ({"report_to": "wandb"}, "--report-to wandb: .*wandb"),
        ({"learning_rate": "fast"}, "argument --learning-rate: invalid float value: 'fast'"),
        ({"learning_ratee": 1}, "--learning_ratee is no argument of xacle train ratings; did you mean --learning-rate"),
        ({"lora_r": 2, "freeze_language_model": "true"}, "LoRA decides what is trained"),
        ({"feature_cache": __file__}, "--feature-cache '.*' cannot be made: File exists"),
        ({"output_dir": __file__}, "--output-dir '.*' cannot be made: File exists"),
    ],
)
def test_mistakes_are_reported_before_any_training(options, message, task, tmp_path):
    equal = task.folder / "equal.csv"
    rows = (task.folder / "ratings.csv").read_text().splitlines()
    equal.write_text("\n".join([rows[0], *(row.rpartition(",")[0] + ",7" for row in rows[1:])]))
    tables = {"TRAIN": task.folder / "ratings.csv", "EQUAL": equal}
    options = {name: tables.get(value, value) for name, value in options.items()}
    with pytest.raises((ValueError, OSError), match=message):
        stage3_ratings.main(task.arguments(**{"output_dir": tmp_path / "runs/run", **options}))
    assert not (tmp_path / "runs").exists()


def test_a_config_file_stands_between_the_stages_defaults_and_the_command_line(task, tmp_path):
    from xacle.train.arguments import CONFIGS, DataArguments, RankingArguments, parse_arguments

    config = tmp_path / "mine.yaml"
    config.write_text("learning_rate: 2.0e-4\nfreq_mask_width: 3\ntrain_file: mine.csv\n")
    arguments = ["--config", str(config), "--freq_mask_width", "7", "--use_cpu", "true"]
    data, ranking, training = parse_arguments(arguments, CONFIGS / "ratings.yaml", DataArguments, RankingArguments)
    assert isinstance(training, TrainingArguments) and training.learning_rate == 2e-4 and data.train_file == "mine.csv"
    assert (ranking.freq_mask_width, ranking.time_mask_width, training.num_train_epochs) == (7, 30, 150)
    config.write_text("on_error: Skip\n")  # argparse itself checks the command line only
    with pytest.raises(ValueError, match="--on-error must be one of stop, skip, got 'Skip'"):
        parse_arguments(["--config", str(config)], CONFIGS / "ratings.yaml", DataArguments, RankingArguments)
    config.write_text("learningrate: 1\n")
    with pytest.raises(ValueError, match="sets 'learningrate', which is no argument; did you mean 'learning_rate'"):
        parse_arguments(["--config", str(config)], CONFIGS / "ratings.yaml", DataArguments, RankingArguments)


@pytest.mark.parametrize(
    ("file", "rate", "epochs"), [("captioning", 1e-5, 3), ("pseudo_labels", 1e-5, 20), ("ratings", 6.2e-6, 150)]
)
def test_the_packaged_configs_are_the_papers(file, rate, epochs):
    from xacle.train.arguments import CONFIGS, DataArguments, RankingArguments, parse_arguments

    *_, training = parse_arguments(["--use_cpu", "true"], CONFIGS / f"{file}.yaml", DataArguments, RankingArguments)
    assert (training.learning_rate, training.num_train_epochs, training.per_device_train_batch_size) == (rate, epochs, 16)
    assert "adamw" in training.optim
