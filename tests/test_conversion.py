"""Converting released checkpoints: every naming they came in, exact or refused, and nothing unpickled."""

import pickle
import re
import shutil

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

from xacle.conversion.beats import convert_beats
from xacle.conversion.tmu import convert_tmu
from xacle.modeling_beats import BeatsForAudioClassification, BeatsModel
from xacle.modeling_xacle import XacleForAlignmentScoring

BEATS = "llm_wrapper.audio_encoder.model."


@pytest.fixture
def release(tmp_path):
    """A copy of the released folder to change: `(folder, its state dict)`."""
    folder = tmp_path / "release"
    shutil.copytree(GOLDEN / "tmu", folder)
    return folder, torch.load(folder / "model.pt", weights_only=True)


def converted_tensors(source, out, **arguments) -> dict[str, torch.Tensor]:
    return load_file(convert_tmu(source, out, **arguments) / "model.safetensors")


def save(tensors, folder) -> None:
    torch.save(tensors, folder / "model.pt")


def legacy_name(name: str) -> str:
    """The oldest naming of the authors' checkpoints."""
    name = name.replace("llm_wrapper.audio_encoder.", "llm_wrapper.audio_adapter.audio_encoder.")
    name = name.replace("llm_wrapper.audio_projection.", "llm_wrapper.audio_adapter.")
    name = name.replace("score_head.mlp.", "projection.mlp.")
    if name.startswith("final_linear.linear."):
        return "model.projection." + name.rsplit(".", 1)[1]
    return "model.model." + name


NAMINGS = {
    "bare": lambda tensors: tensors,
    "model_state_dict": lambda tensors: {"model_state_dict": tensors, "epoch": 3},
    "lightning": lambda tensors: {"state_dict": {f"model.{name}": tensor for name, tensor in tensors.items()}, "epoch": 3},
    "legacy": lambda tensors: {"state_dict": {legacy_name(name): tensor for name, tensor in tensors.items()}},
    "parametrizations": lambda tensors: {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): tensor
        for name, tensor in tensors.items()
    },
    "one bias table": lambda tensors: {
        name: tensor for name, tensor in tensors.items() if not re.search(r"layers\.[1-9]\d*\..*relative_attention_bias", name)
    },
    "fine-tuned BEATs": lambda tensors: {
        **tensors,
        BEATS + "predictor.weight": torch.zeros(527, 48),
        BEATS + "predictor.bias": torch.zeros(527),
    },
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_gives_the_same_weights(release, released_folder, tmp_path, naming):
    folder, tensors = release
    save(NAMINGS[naming](tensors), folder)
    expected = load_file(released_folder / "model.safetensors")
    actual = converted_tensors(folder, tmp_path / "out")
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_the_authors_own_legacy_checkpoint(shared, released_folder, tmp_path):
    expected = load_file(released_folder / "model.safetensors")
    actual = converted_tensors(
        shared / "golden/tmu_tiny/legacy_xacle.ckpt", tmp_path / "out", llm=str(shared / "golden/tmu_tiny/qwen_tiny")
    )
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_the_placeholder_gets_a_row_without_touching_the_others(release, tmp_path):
    folder, tensors = release
    name = "llm_wrapper.llm.embed_tokens.weight"
    released = tensors[name]
    embeddings = converted_tensors(folder, tmp_path / "a")["model.language_model.embed_tokens.weight"]
    assert torch.equal(embeddings[:-1], released)
    padded = torch.cat([released, torch.randn(86, 64)])  # a table that was never resized: 512 rows, like Qwen's 151936
    save({**tensors, name: padded}, folder)
    embeddings = converted_tensors(folder, tmp_path / "b")["model.language_model.embed_tokens.weight"]
    assert torch.equal(embeddings, padded)


def test_the_converted_folder_is_complete(released_folder):
    names = {path.name for path in released_folder.iterdir()}
    code = {"configuration_xacle.py", "modeling_beats.py", "modeling_xacle.py", "pipeline_xacle.py", "processing_xacle.py"}
    assert code | {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md"} <= names
    card = (released_folder / "README.md").read_text()
    assert "license: unknown" in card and "CC-BY-NC-4.0: no commercial use" in card
    config = XacleForAlignmentScoring.from_pretrained(released_folder).config
    assert config.score_head_hidden_sizes == [40, 40, 24]
    assert (config.score_scale, config.score_shift) == (5.0, 5.0)


def change(tensors, name, value):
    return {**tensors, name: value}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if "fc1.bias" not in k}, r"missing: model\.multi_modal_projector.*fc1\.bias"),
        (lambda t: change(t, "llm_wrapper.extra.weight", torch.zeros(2)), r"unexpected: llm_wrapper\.extra\.weight \[2\]"),
        (
            lambda t: change(t, "llm_wrapper.llm.norm.weight", torch.zeros(65)),
            r"shape of .*norm\.weight: \[65\], expected \[64\]",
        ),
        (lambda t: change(t, "model.score_head.mlp.0.bias", torch.zeros(40)), r"two tensors for score_head\.mlp\.0\.bias"),
        (
            lambda t: change(t, BEATS + "encoder.layers.1.self_attn.relative_attention_bias.weight", torch.zeros(320, 4)),
            "tables that differ",
        ),
        (lambda t: {"weights": torch.zeros(3)}, r"missing: model\.language_model\.embed_tokens\.weight"),
        (lambda t: {k: v for k, v in t.items() if "patch_embedding" not in k}, "missing: .*patch_embedding"),
        (lambda t: {k: v for k, v in t.items() if "grep_a" not in k}, "missing: .*gru_rel_pos_const"),
        (lambda t: {k: v for k, v in t.items() if "relative_attention_bias" not in k}, "missing: .*relative_attention_bias"),
        (lambda t: {**t, "epoch": 3}, "no tensors: epoch"),
        (lambda t: {"state_dict": [1]}, "holds a list"),
        (
            lambda t: change(t, "llm_wrapper.llm.embed_tokens.weight", torch.zeros(420, 64)),
            "is this the right language model",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(release, tmp_path, damage, message):
    folder, tensors = release
    save(damage(tensors), folder)
    with pytest.raises(ValueError, match=message):
        convert_tmu(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Malicious:
    def __reduce__(self):
        return (open, ("pickle_was_executed", "w"))


def test_pickled_code_is_not_executed(release, tmp_path, monkeypatch):
    folder, tensors = release
    monkeypatch.chdir(tmp_path)
    save({**tensors, "hyper_parameters": Malicious()}, folder)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint of tensors"):
        convert_tmu(folder, tmp_path / "out")
    assert not (tmp_path / "pickle_was_executed").exists()


def test_missing_and_existing_places_are_named(release, tmp_path):
    folder, _ = release
    with pytest.raises(FileNotFoundError, match="neither a folder, a file nor a Hub id"):
        convert_tmu(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    with pytest.raises(FileExistsError, match="not an empty folder"):
        convert_tmu(folder, tmp_path / "used")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="pass --llm"):
        convert_tmu(folder, tmp_path / "out")
    (folder / "model.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.pt"):
        convert_tmu(folder, tmp_path / "out")
    (folder / "model.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        convert_tmu(folder, tmp_path / "out", llm=str(folder / "qwen_tiny"))


def test_beats_of_both_kinds(tmp_path):
    assert type(BeatsModel.from_pretrained(convert_beats(GOLDEN / "beats_tiny_a.pt", tmp_path / "a"))) is BeatsModel
    checkpoint = torch.load(GOLDEN / "beats_tiny_b.pt", weights_only=True)
    checkpoint["label_dict"] = {index: f"/m/{index}" for index in range(7)}  # as in Microsoft's fine-tuned files
    torch.save(checkpoint, tmp_path / "b.pt")
    model = BeatsForAudioClassification.from_pretrained(convert_beats(tmp_path / "b.pt", tmp_path / "b"))
    assert model.config.id2label[3] == "/m/3"
    assert model.config.num_buckets == 32
    assert model.config.problem_type == "multi_label_classification"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c["cfg"].update(layer_norm_first=True), r"not supported: \{'layer_norm_first': True\}"),
        (lambda c: c["model"].pop("encoder.layers.0.fc1.bias"), r"missing: encoder\.layers\.0\.fc1\.bias"),
        (lambda c: c["model"].update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda c: c["cfg"].update(encoder_layers=3), r"missing: encoder\.layers\.2"),
        (lambda c: c.pop("cfg"), "no BEATs checkpoint"),
        (lambda c: c.update(cfg=[1]), "its 'cfg' is a list"),
        (lambda c: c["cfg"].update(activation_fn="glu"), "not supported: glu"),
        (lambda c: c["model"].update(step=3), "no tensors: step"),
    ],
)
def test_damaged_beats_checkpoints_are_refused(tmp_path, damage, message):
    checkpoint = torch.load(GOLDEN / "beats_tiny_a.pt", weights_only=True)
    damage(checkpoint)
    torch.save(checkpoint, tmp_path / "beats.pt")
    with pytest.raises(ValueError, match=message):
        convert_beats(tmp_path / "beats.pt", tmp_path / "out")


def test_old_style_pickles_are_read_too(tmp_path):
    checkpoint = torch.load(GOLDEN / "beats_tiny_a.pt", weights_only=True)
    torch.save(checkpoint, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    expected = load_file(convert_beats(GOLDEN / "beats_tiny_a.pt", tmp_path / "a") / "model.safetensors")
    actual = load_file(convert_beats(tmp_path / "old.pt", tmp_path / "b") / "model.safetensors")
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    (tmp_path / "text.pt").write_text("no checkpoint at all")
    with pytest.raises(ValueError, match=r"text\.pt' cannot be read as a checkpoint"):
        convert_beats(tmp_path / "text.pt", tmp_path / "c")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"holds a list, not a dict|cannot be read"):
        convert_beats(tmp_path / "plain.pkl", tmp_path / "c")
