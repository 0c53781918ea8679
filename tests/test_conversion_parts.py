"""Checkpoints of the authors' code that lack something: adapters not merged, no encoder; and who may read what is written."""

import os
import shutil
import stat

import pytest
import torch
from conftest import GOLDEN
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from xacle.conversion.beats import convert_beats
from xacle.conversion.lora import merge_lora
from xacle.conversion.tmu import convert_tmu
from xacle.core.provenance import read_json

ENCODER, LLM = "llm_wrapper.audio_encoder.model.", "llm_wrapper.llm."


@pytest.fixture
def release(tmp_path):
    """A copy of the released folder to change, and its state dict."""
    shutil.copytree(GOLDEN / "tmu", tmp_path / "release")
    return tmp_path / "release", torch.load(tmp_path / "release/model.pt", weights_only=True)


@pytest.fixture
def with_lora(release):
    """The release with adapters around its language model, as its code saves them; and the weights with these merged."""
    folder, tensors = release
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder / "qwen_tiny")
    config.vocab_size = len(tensors[f"{LLM}embed_tokens.weight"])
    decoder = AutoModel.from_config(config)
    decoder.load_state_dict({name.removeprefix(LLM): tensor for name, tensor in tensors.items() if name.startswith(LLM)})
    adapted = get_peft_model(decoder, LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    others = {name: tensor for name, tensor in tensors.items() if not name.startswith(LLM)}
    torch.save(others | {LLM + name: tensor.clone() for name, tensor in adapted.state_dict().items()}, folder / "model.pt")
    return folder, {f"model.language_model.{name}": tensor for name, tensor in adapted.merge_and_unload().state_dict().items()}


def test_adapters_are_merged_as_peft_merges_them(with_lora, tmp_path):
    folder, merged = with_lora
    converted = load_file(convert_tmu(folder, tmp_path / "out", lora_alpha=12) / "model.safetensors")
    for name, tensor in merged.items():
        torch.testing.assert_close(converted[name][: len(tensor)], tensor, rtol=0, atol=1e-6)
    released = load_file(convert_tmu(GOLDEN / "tmu", tmp_path / "released") / "model.safetensors")
    assert converted.keys() == released.keys()
    moved = {name for name in released if not torch.equal(released[name], converted[name])}
    assert moved and all(".q_proj." in name or ".v_proj." in name or ".down_proj." in name for name in moved)


def test_alpha_comes_from_the_config_or_is_asked_for(with_lora, tmp_path):
    folder, _ = with_lora
    with pytest.raises(ValueError, match=r"holds LoRA adapters: pass --lora-alpha.*merge_and_unload"):
        convert_tmu(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    settings = read_json(folder / "config.json")
    (folder / "config.json").write_text(str({**settings, "lora_config": {"r": 4, "lora_alpha": 12}}).replace("'", '"'))
    told = load_file(convert_tmu(folder, tmp_path / "a") / "model.safetensors")
    given = load_file(convert_tmu(folder, tmp_path / "b", lora_alpha=12) / "model.safetensors")
    assert all(torch.equal(told[name], given[name]) for name in given)


@pytest.mark.parametrize(
    "name, message",
    [
        ("llm.x.lora_magnitude_vector.default.weight", "cannot be merged here"),
        ("llm.x.lora_A.other.weight", "several LoRA adapters for llm.x"),
        ("llm.y.lora_A.default.weight", "incomplete LoRA adapter for llm.y"),
    ],
)
def test_other_adapters_are_refused_with_advice(name, message):
    tensors = {"llm.x.base_layer.weight": torch.ones(3, 2), "llm.x.lora_A.default.weight": torch.ones(1, 2)}
    tensors |= {"llm.x.lora_B.default.weight": torch.ones(3, 1), name: torch.ones(1)}
    with pytest.raises(ValueError, match=rf"{message}.*merge_and_unload"):
        merge_lora(tensors, 1.0, "model.pt")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_checkpoint_without_encoder_takes_another(release, tmp_path, kind):
    folder, tensors = release
    torch.save({name: tensor for name, tensor in tensors.items() if not name.startswith(ENCODER)}, folder / "model.pt")
    with pytest.raises(ValueError, match="holds no BEATs weights; pass the encoder it was trained with, --beats FILE_OR_DIR"):
        convert_tmu(folder, tmp_path / "out")
    original = GOLDEN / "beats_tiny_a.pt"
    beats = original if kind == "file" else convert_beats(original, tmp_path / "beats")
    scorer = convert_tmu(folder, tmp_path / "out", beats=beats)
    converted = load_file(scorer / "model.safetensors")
    encoder = load_file(convert_beats(original, tmp_path / "expected") / "model.safetensors")
    for name, tensor in encoder.items():
        assert torch.equal(converted[f"model.audio_tower.{name}"], tensor)
    assert [source["role"] for source in read_json(scorer / "config.json")["weight_sources"]] == ["scorer", "audio encoder"]
    with pytest.raises(ValueError, match="holds its own BEATs weights: leave out --beats"):
        convert_tmu(GOLDEN / "tmu", tmp_path / "other", beats=beats)


def test_weights_have_the_permissions_of_new_files(tmp_path):
    mask = os.umask(0o027)
    try:
        for folder in (convert_tmu(GOLDEN / "tmu", tmp_path / "a"), convert_beats(GOLDEN / "beats_tiny_a.pt", tmp_path / "b")):
            assert stat.S_IMODE((folder / "model.safetensors").stat().st_mode) == 0o640
    finally:
        os.umask(mask)
