"""BEATs: Microsoft's numbers from converted checkpoints, one result for every attention implementation, a trainable model."""

import copy
import pickle

import pytest
import torch
from conftest import GOLDEN

from xacle.configuration_xacle import BeatsConfig
from xacle.conversion.beats import convert_beats
from xacle.modeling_beats import BeatsForAudioClassification, BeatsModel
from xacle.processing_xacle import XacleFeatureExtractor

extractor = XacleFeatureExtractor()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Both checkpoint kinds of Microsoft's format, converted: `a` pre-trained, `b` fine-tuned with 7 classes."""
    out = tmp_path_factory.mktemp("beats")
    return {name: convert_beats(GOLDEN / f"beats_tiny_{name}.pt", out / name) for name in "ab"}


def load(folders, name, attention="sdpa"):
    return BeatsModel.from_pretrained(folders[name], attn_implementation=attention).eval()


def padded_fbank(golden) -> torch.Tensor:
    """The golden fbank of a 3 s clip, with the silence it was padded with: `[1, 998, 128]`."""
    silence = extractor(torch.zeros(160000), 16000, return_tensors="pt")["input_features"][:, 304:]
    return torch.cat([golden["fbank"].unsqueeze(0), silence], dim=1)


def tiny_beats(**fields) -> BeatsConfig:
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    return BeatsConfig(**{**sizes, "patch_embed_dim": 32, **fields})


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("name", ["a", "b"])
@torch.no_grad()
def test_microsofts_numbers(folders, golden, name, attention):
    torch.compiler.reset()  # flex_attention on CPU fails to recompile for a second length with a mask (torch 2.13)
    latents = load(folders, name, attention)(padded_fbank(golden)).last_hidden_state
    torch.testing.assert_close(latents[0], golden[f"{name}.latents"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("name", ["a", "b"])
@torch.no_grad()
def test_microsofts_numbers_with_a_padding_mask(folders, golden, name, attention):
    torch.compiler.reset()
    model = load(folders, name, attention)
    frames, tokens = ~golden["frame_padding_mask"].bool(), ~golden["token_padding_mask"].bool()
    wave = torch.zeros(frames.sum() * 160)
    mask = extractor(wave, 16000, return_attention_mask=True, return_tensors="pt")["attention_mask"]
    assert torch.equal(mask[0].bool(), frames)
    assert torch.equal(model.token_mask(mask)[0], tokens)
    latents = model(padded_fbank(golden), attention_mask=mask).last_hidden_state[0]
    torch.testing.assert_close(latents * tokens.unsqueeze(-1), golden[f"{name}.masked_latents"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["a", "b"])
@torch.no_grad()
def test_microsofts_numbers_for_a_short_clip(folders, golden, name, attention):
    features = extractor(golden["short_wave"].numpy(), 16000, padding=False, return_tensors="pt")["input_features"]
    assert features.shape == (1, 235, 128)
    latents = load(folders, name, attention)(features).last_hidden_state
    torch.testing.assert_close(latents, golden[f"{name}.short_latents"], rtol=0, atol=1e-5)


@torch.no_grad()
def test_microsofts_class_probabilities(folders, golden):
    model = BeatsForAudioClassification.from_pretrained(folders["b"]).eval()
    torch.testing.assert_close(model(padded_fbank(golden)).logits.sigmoid()[0], golden["b.lprobs"], rtol=0, atol=1e-5)
    assert model.config.num_labels == 7


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("name", ["a", "b"])
@torch.no_grad()
def test_the_full_golden_set(folders, shared, name, attention):
    from safetensors.torch import load_file

    full = load_file(shared / "golden/beats_tiny/golden.safetensors")
    torch.compiler.reset()
    model = load(folders, name, attention)
    real_frames = ~full["a.frame_padding_mask"].bool()
    masked = model(full["a.fbank"], attention_mask=real_frames).last_hidden_state
    tokens = model.token_mask(real_frames)
    assert torch.equal(tokens, ~full["a.token_padding_mask"].bool())
    torch.testing.assert_close(masked * tokens.unsqueeze(-1), full[f"{name}.masked_latents"], rtol=0, atol=1e-5)
    outputs = model(full["a.fbank"], output_hidden_states=True)
    torch.testing.assert_close(outputs.last_hidden_state, full[f"{name}.latents"], rtol=0, atol=1e-5)
    hidden_states = torch.stack(outputs.hidden_states, dim=1)[:2]
    torch.testing.assert_close(hidden_states, full[f"{name}.hidden_states"], rtol=0, atol=1e-5)
    lengths = [torch.zeros(length) for length in full["lengths"].tolist()]
    mask = extractor(lengths, 16000, return_attention_mask=True, return_tensors="pt")["attention_mask"]
    assert torch.equal(mask.bool(), real_frames)


@torch.no_grad()
def test_eager_returns_attention_weights(folders, golden):
    features = extractor(golden["short_wave"].numpy(), 16000, padding=False, return_tensors="pt")["input_features"]
    attentions = load(folders, "a", "eager")(features, output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in attentions] == [(1, 4, 112, 112)] * 2
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(1, 4, 112))


def test_flash_attention_is_refused():
    with pytest.raises(ValueError, match=r"(?i)flash"):
        BeatsModel._from_config(tiny_beats(), attn_implementation="flash_attention_2")


def test_a_clip_too_short_is_refused():
    model = BeatsModel(tiny_beats())
    for shape in ((1, 15, 128), (1, 998, 64), (998, 128)):
        with pytest.raises(ValueError, match="at least 16 frames"):
            model(torch.zeros(shape))


def test_copies_and_pickles(folders):
    model = load(folders, "a")
    features = torch.randn(1, 64, 128)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(features).last_hidden_state, model(features).last_hidden_state)


def test_a_fresh_model_starts_with_normalized_kernels():
    torch.manual_seed(0)
    embedding = BeatsModel(tiny_beats()).encoder.pos_conv_embed
    direction = embedding.direction.detach()
    torch.testing.assert_close(embedding.magnitude.detach(), direction.norm(dim=(0, 1), keepdim=True))
    assert direction.std().item() == pytest.approx((4 / (128 * 48)) ** 0.5, rel=0.1)


def test_it_learns_to_classify_sounds():
    torch.manual_seed(0)
    config = tiny_beats(num_labels=2, num_conv_pos_embeddings=16, layerdrop=0.0)
    model = BeatsForAudioClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    low, high = torch.zeros(2, 48, 128)
    low[:, :40], high[:, 88:] = 2.0, 2.0
    labels = torch.tensor([0, 1] * 4)
    losses = []
    for _ in range(60):
        features = torch.stack([low, high] * 4) + 0.5 * torch.randn(8, 48, 128)
        loss = model(features, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < 0.5 < losses[0]


def test_layers_are_skipped_in_training_only():
    torch.manual_seed(0)
    model = BeatsModel(tiny_beats(layerdrop=0.5))
    features = torch.randn(1, 32, 128)
    trained = {model.train()(features).last_hidden_state.sum().item() for _ in range(20)}
    evaluated = {model.eval()(features).last_hidden_state.sum().item() for _ in range(5)}
    assert len(trained) > 1
    assert len(evaluated) == 1


def test_remote_code_gives_the_same_numbers(folders, golden, run_python):
    code = """
import sys, torch
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification
golden = load_file(sys.argv[3])
extractor = AutoFeatureExtractor.from_pretrained(sys.argv[1], trust_remote_code=True)
features = extractor(golden["short_wave"].numpy(), sampling_rate=16000, padding=False, return_tensors="pt")["input_features"]
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
classifier = AutoModelForAudioClassification.from_pretrained(sys.argv[2], trust_remote_code=True)
with torch.no_grad():
    print((model(features).last_hidden_state - golden["a.short_latents"]).abs().max().item())
    print((classifier.beats(features).last_hidden_state - golden["b.short_latents"]).abs().max().item())
"""
    differences = run_python(code, folders["a"], folders["b"], GOLDEN / "golden.safetensors").split()
    assert all(float(difference) < 1e-5 for difference in differences)
