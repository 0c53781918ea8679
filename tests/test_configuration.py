"""Configurations: the paper's defaults, validation, JSON and remote code."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import Qwen2Config

from xacle.configuration_xacle import BeatsConfig, XacleConfig
from xacle.modeling_xacle import XacleForAlignmentScoring


def parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_defaults_are_the_papers_model():
    with torch.device("meta"):
        model = XacleForAlignmentScoring(XacleConfig())
    assert round(parameters(model.model.audio_tower) / 1e6, 1) == 90.3
    assert parameters(model.model.multi_modal_projector) == 10_103_936  # the paper's 10.1 M
    assert round(parameters(model.model.language_model) / 1e6, 1) == 494.0
    assert parameters(model.score_head) == 897  # the paper's linear layer


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"projector_depth": 4}, "projector_depth"),
        ({"projector_depht": 2}, "Did you mean 'projector_depth'"),
        ({"audio_pooling": "max"}, "audio_pooling"),
        ({"projector_type": "mlp"}, "projector_type"),
        ({"score_pooling": "mean"}, "score_pooling"),
        ({"num_audio_tokens": 0}, "at least 1"),
        ({"num_audio_tokens": True}, "num_audio_tokens"),
        ({"score_scale": -1.0}, "above 0"),
        ({"listnet_temperature": 0.0}, "above 0"),
        ({"listnet_prediction_temperature": -1.0}, "above 0"),
        ({"projector_dropout": 1.0}, "probability"),
        ({"freq_mask_width": -1}, "at least 0"),
        ({"score_head_hidden_sizes": [512, 0]}, "positive"),
        ({"audio_token_id": 151665}, "different ids"),
        ({"text_config": Qwen2Config(vocab_size=100)}, "below text_config.vocab_size"),
        ({"audio_config": {"hidden_size": 100}}, "divisible by num_attention_heads"),
        ({"audio_config": {"patch_size": 15}}, "divisible by patch_size"),
        ({"audio_config": {"max_bucket_distance": 80}}, "larger than num_buckets"),
        ({"audio_config": {"layerdrop": 1.5}}, "probability"),
    ],
)
def test_wrong_fields_are_refused_with_a_reason(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        XacleConfig(**fields)


def test_json_round_trip_keeps_every_field(tmp_path):
    config = XacleConfig(
        audio_config=BeatsConfig(num_hidden_layers=3, layerdrop=0),
        projector_type="qformer",
        projector_depth=2,
        score_head_hidden_sizes=[512, 512, 128],
        score_pooling="last_token",
        listnet_prediction_temperature=2,
        score_scale=3,
        freq_mask_width=15,
    )
    config.save_pretrained(tmp_path)
    loaded = XacleConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert BeatsConfig.from_pretrained(tmp_path).num_hidden_layers == 3  # the audio part of a scorer's folder


def test_remote_code_reads_the_same_fields(tmp_path, run_python):
    XacleConfig(projector_depth=3, score_scale=2.5).save_pretrained(tmp_path / "model")
    code = """
import json, sys
from transformers import AutoConfig
config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True, audio_config={"layerdrop": 0.0})
print(json.dumps([config.projector_depth, config.score_scale, config.audio_config.layerdrop, type(config).__module__]))
"""
    depth, scale, layerdrop, module = json.loads(run_python(code, tmp_path / "model"))
    assert (depth, scale, layerdrop) == (3, 2.5, 0.0)
    assert module.startswith("transformers_modules.")


def test_captioning_ties_embeddings_when_the_language_model_does():
    assert XacleConfig().tie_word_embeddings
    assert not XacleConfig(text_config=Qwen2Config(vocab_size=151936, tie_word_embeddings=False)).tie_word_embeddings
