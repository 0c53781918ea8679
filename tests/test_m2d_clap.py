"""M2D-CLAP: front end, model, converter and license, against independent computations and the published facts."""

import argparse
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor, BertConfig, BertModel, BertTokenizer, pipeline
from transformers.audio_utils import mel_filter_bank

from xacle.clap.m2d_configuration import M2dClapAudioConfig, M2dClapConfig
from xacle.clap.m2d_conversion import convert_m2d_clap
from xacle.clap.m2d_modeling import M2dClapModel
from xacle.clap.m2d_processing import M2dClapFeatureExtractor, M2dClapProcessor
from xacle.core.provenance import NOTICE_FILE

CAPTIONS = ["a dog barks", "rain falls on a roof", "a clock ticks"]
NAME_2025 = "m2d_clap_vit_tiny-80x100p16x16p16kpBpTI-2025"
NAME_2024 = "m2d_clap_vit_tiny-80x100p16x16-240128"
TINY_AUDIO = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "input_frames": 100}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    return BertTokenizer(str(file))


@pytest.fixture(scope="module")
def processor(tokenizer):
    return M2dClapProcessor(M2dClapFeatureExtractor(), tokenizer)


@pytest.fixture(scope="module")
def make_model(tokenizer):
    """Builds a tiny model in evaluation mode with weights large enough that every part changes the result."""

    def make(audio: dict | None = None, attn_implementation: str = "sdpa", **fields):
        torch.manual_seed(0)
        text = BertConfig(
            vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96
        )
        audio = M2dClapAudioConfig(**{**TINY_AUDIO, **(audio or {})})
        config = M2dClapConfig(audio_config=audio, text_config=text, **fields)
        model = M2dClapModel._from_config(config, attn_implementation=attn_implementation).eval()
        with torch.no_grad():
            for parameter in model.audio_model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return make


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).standard_normal(samples)).clip(-1, 1).astype(np.float32)


def chirp(samples: int) -> np.ndarray:
    time = np.arange(samples) / 16000
    return (0.5 * np.sin(2 * np.pi * (100 * time + 350 * time**2))).astype(np.float32)


def features(*frames: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 80, generator=generator) for count in frames]


# --- Front end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waveform", [noise(160000), chirp(160000), noise(16123), np.zeros(8000, np.float32)])
def test_the_front_end_equals_a_plain_dft_in_float64(waveform):
    padded = np.pad(waveform.astype(np.float64), 200, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, 400)[::160]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    fourier = np.exp(-2j * np.pi * np.outer(np.arange(400), np.arange(201)) / 400)
    filters = mel_filter_bank(201, 80, 50.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    log_mel = np.log(np.abs((frames * window) @ fourier) ** 2 @ filters + np.finfo(np.float32).eps)
    expected = (log_mel - -7.261779308319092) / 4.3511505126953125
    actual = M2dClapFeatureExtractor()(waveform, sampling_rate=16000, return_tensors="np")["input_features"]
    assert actual.dtype == np.float32
    assert actual.shape == (1, 1 + len(waveform) // 160, 80)  # 10 s: 1001 frames
    np.testing.assert_allclose(actual[0], expected, atol=2e-4)


def test_a_clip_has_the_same_features_alone_and_in_a_batch(tmp_path):
    extractor = M2dClapFeatureExtractor(norm_mean=-7.1, norm_std=4.2)
    extractor.save_pretrained(tmp_path)
    extractor = M2dClapFeatureExtractor.from_pretrained(tmp_path)
    clips = [noise(5000, seed=1), chirp(20000)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = extractor(clips, sampling_rate=16000, return_tensors="pt")
    assert batch["input_lengths"].tolist() == [32, 126]
    assert batch["input_features"].dtype == torch.float32
    for row, clip in zip(batch["input_features"], clips, strict=True):
        alone = extractor(torch.from_numpy(clip), sampling_rate=16000, return_tensors="pt")["input_features"][0]
        assert torch.equal(row[: len(alone)], alone)
        assert not row[len(alone) :].any()
    assert extractor(clips, sampling_rate=16000, padding="max_length", max_length=130)["input_features"].shape == (2, 130, 80)
    assert [len(clip) for clip in extractor(clips, sampling_rate=16000, padding=False)["input_features"]] == [32, 126]


def test_the_front_end_refuses_sounds_and_settings_it_cannot_take():
    extractor = M2dClapFeatureExtractor()
    assert extractor(noise(201), sampling_rate=16000)["input_features"].shape == (1, 2, 80)
    with pytest.raises(ValueError, match="a clip of 200 samples is too short"):
        extractor([noise(16000), noise(200)], sampling_rate=16000)
    with pytest.raises(ValueError, match="no audio was given"):
        extractor([])
    with pytest.raises(ValueError, match="max_length of at least 101 frames, got 50"):
        extractor(noise(16000), sampling_rate=16000, padding="max_length", max_length=50)
    with pytest.raises(ValueError, match="16000 Hz, got sampling_rate=32000"):
        M2dClapFeatureExtractor(sampling_rate=32000)


# --- Processor -----------------------------------------------------------------------------------------------------------


def test_the_processor_survives_a_round_trip(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    for loaded in (M2dClapProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is M2dClapProcessor
        assert type(loaded.feature_extractor) is M2dClapFeatureExtractor
        inputs = loaded(text=CAPTIONS, audio=[noise(16000), noise(8000)], sampling_rate=16000)
        assert list(inputs) == ["input_ids", "attention_mask", "input_features", "input_lengths"] == loaded.model_input_names
        assert inputs["input_ids"].shape == (3, 7)
        assert inputs["attention_mask"].sum(dim=1).tolist() == [5, 7, 5]
        assert inputs["input_features"].shape == (2, 101, 80)
    assert list(processor(text="a dog barks")) == ["input_ids", "attention_mask"]
    # Asking for short captions must not shorten sounds.
    inputs = processor(text=CAPTIONS, audio=noise(16000), sampling_rate=16000, truncation=True, max_length=4)
    assert inputs["input_ids"].shape == (3, 4)
    assert inputs["input_features"].shape == (1, 101, 80)
    with pytest.raises(ValueError, match="pass `text`, `audio` or both"):
        processor()


# --- Model ---------------------------------------------------------------------------------------------------------------


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_full_size_model_has_the_published_shapes_and_counts():
    with torch.device("meta"):
        model = M2dClapModel(M2dClapConfig())
        frames_of_20_ms = M2dClapConfig(audio_config={"patch_height": 80, "patch_width": 2})
        model_of_2024 = M2dClapModel(
            M2dClapConfig(audio_config={"input_frames": 608, "projection_type": "mlp"}, text_pooling="mean")
        )
        bert = BertModel(BertConfig(), add_pooling_layer=False)
        inputs = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 1001, 80)
    audio = model.audio_model
    assert count(audio.projection) == 3_548_928
    assert round((count(audio) - count(audio.projection)) / 1e6, 1) == 85.5
    assert count(model.text_model) == count(bert)
    assert len(list(audio.parameters())) == 166 - 1  # the log's 166 parameters, of which norm_stats is the extractor's
    assert frames_of_20_ms.audio_config.patch_grid == (1, 500)
    assert model_of_2024.audio_model.embeddings.position_embeddings.shape == (1, 1 + 5 * 38, 768)
    assert count(model_of_2024.audio_model.projection) == 2 * (768 * 768 + 768)

    shapes = {}
    expected = {
        "embeddings.patch_embeddings": (2, 768, 5, 62),
        "layers.0.attention.qkv": (2, 311, 3 * 768),
        "layers.0.fc1": (2, 311, 3072),
        "layers.11": (2, 311, 768),
        "projection.blocks.0.fc1": (2, 311, 768),
        "projection.blocks.0": (2, 311, 768),
    }
    for name in expected:
        audio.get_submodule(name).register_forward_hook(lambda _, args, out, name=name: shapes.update({name: tuple(out.shape)}))
    outputs = model(*inputs, return_loss=True)
    assert shapes == expected
    assert outputs.audio_model_output.last_hidden_state.shape == (2, 310, 768)
    assert outputs.audio_embeds.shape == outputs.text_embeds.shape == (2, 768)
    assert outputs.logits_per_audio.shape == (2, 2)
    assert outputs.loss.shape == ()


def plain_block(x, weights, heads, eps):
    """A pre-norm Transformer layer on `[tokens, width]`, head by head."""
    width = x.shape[-1]
    normed = F.layer_norm(x, [width], weights["norm1.weight"], weights["norm1.bias"], eps)
    query, key, value = (normed @ weights["attention.qkv.weight"].T + weights["attention.qkv.bias"]).split(width, dim=-1)
    attended = []
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        scores = query[:, part] @ key[:, part].T / math.sqrt(width // heads)
        attended.append(scores.softmax(-1) @ value[:, part])
    x = x + torch.cat(attended, -1) @ weights["attention.proj.weight"].T + weights["attention.proj.bias"]
    normed = F.layer_norm(x, [width], weights["norm2.weight"], weights["norm2.bias"], eps)
    hidden = normed @ weights["fc1.weight"].T + weights["fc1.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + hidden @ weights["fc2.weight"].T + weights["fc2.bias"]


def plain_audio_tower(model, clip):
    """The audio tower for one clip `[frames, 80]`, from the facts: chunks, patches f * W + t, cut positions, projection."""
    config = model.config.audio_config
    tensors = dict(model.audio_model.state_dict())
    bands, grid_columns = 80 // 16, config.input_frames // 16
    under = lambda prefix: {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}  # noqa: E731
    kernel, bias = tensors["embeddings.patch_embeddings.weight"], tensors["embeddings.patch_embeddings.bias"]
    positions = tensors["embeddings.position_embeddings"][0]
    tokens = []
    for chunk in clip.split(config.input_frames):
        if len(chunk) < config.input_frames:
            chunk = torch.cat([chunk, chunk.new_zeros(-len(chunk) % 16, 80)])
        columns = min(len(chunk) // 16, grid_columns)
        x = [tensors["embeddings.cls_token"][0, 0] + positions[0]]
        for band in range(bands):
            for column in range(columns):
                patch = chunk[column * 16 : column * 16 + 16, band * 16 : band * 16 + 16].T
                x.append((kernel[:, 0] * patch).sum((1, 2)) + bias + positions[1 + band * grid_columns + column])
        x = torch.stack(x)
        for layer in range(config.num_hidden_layers):
            x = plain_block(x, under(f"layers.{layer}."), config.num_attention_heads, 1e-6)
        tokens.append(F.layer_norm(x, [64], tensors["layer_norm.weight"], tensors["layer_norm.bias"], 1e-6)[1:])
    tokens = torch.cat(tokens)
    projection = under("projection.")
    if config.projection_type == "mlp":
        hidden = (tokens.mean(0) @ projection["linear_1.weight"].T + projection["linear_1.bias"]).relu()
        return tokens, hidden @ projection["linear_2.weight"].T + projection["linear_2.bias"]
    x = plain_block(torch.cat([projection["semantic_token"][0], tokens]), under("projection.blocks.0."), 1, 1e-5)
    return tokens, F.layer_norm(x[0], [64], projection["layer_norm.weight"], projection["layer_norm.bias"], 1e-5)


# A whole chunk; shorter clips, whose positions are cut, with and without a full last patch; one that fills the grid only with
# padding; several chunks, the last whole, of 1 frame, and partial.
@pytest.mark.parametrize("frames", [100, 48, 37, 1, 97, 200, 101, 250])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_the_audio_tower_equals_a_plain_computation(make_model, frames, attn_implementation):
    model = make_model({"num_attention_heads": 4}, attn_implementation)
    (clip,) = features(frames)
    with torch.no_grad():
        tokens, embedding = plain_audio_tower(model, clip)
        outputs = model.get_audio_features(clip[None])
    if frames <= 100:  # later chunks are padded within, for the batch
        torch.testing.assert_close(outputs.last_hidden_state[0], tokens)
    torch.testing.assert_close(outputs.pooler_output[0], F.normalize(embedding, dim=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("projection_type", ["semantic_token", "mlp"])
def test_an_embedding_does_not_depend_on_its_batch(make_model, projection_type):
    model = make_model({"projection_type": projection_type})
    clips = features(250, 100, 37, 1)
    lengths = torch.tensor([len(clip) for clip in clips])
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=9.0)  # padding is ignored, whatever it holds
    with torch.no_grad():
        together = model.audio_model(batch, lengths).pooler_output
        for clip, embedding in zip(clips, together, strict=True):
            alone = model.audio_model(clip[None]).pooler_output[0]
            torch.testing.assert_close(embedding, alone, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(plain_audio_tower(model, clip)[1], alone, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(model.audio_model(batch).pooler_output[2], together[2], atol=1e-2)


@pytest.mark.parametrize(("pooling", "pool"), [("cls", lambda x: x[0]), ("mean", lambda x: x.mean(0))])
def test_captions_are_pooled_without_their_padding(make_model, processor, pooling, pool):
    model = make_model(text_pooling=pooling)
    inputs = processor(text=CAPTIONS)
    with torch.no_grad():
        together = model.get_text_features(**inputs)
        for index, caption in enumerate(CAPTIONS):
            alone = processor(text=caption)["input_ids"]
            states = model.text_model.encoder(alone).last_hidden_state[0]
            torch.testing.assert_close(together.pooler_output[index], F.normalize(pool(states), dim=0), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(model.text_model(alone).pooler_output[0], pool(states))


def test_forward_is_cosine_similarity_with_a_symmetric_loss(make_model, processor):
    model = make_model()
    inputs = processor(text=CAPTIONS, audio=[noise(16000), chirp(9000), noise(30000, 1)], sampling_rate=16000)
    with torch.no_grad():
        outputs = model(**inputs, return_loss=True, output_hidden_states=True)
        audio = model.audio_model(inputs["input_features"], inputs["input_lengths"]).pooler_output
    text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
    torch.testing.assert_close(outputs.audio_model_output.pooler_output, audio)
    torch.testing.assert_close(outputs.audio_embeds, audio / audio.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(outputs.text_embeds, text)
    cosines = F.cosine_similarity(audio[:, None], text[None], dim=-1)
    torch.testing.assert_close(outputs.logits_per_audio, cosines / 0.07)
    torch.testing.assert_close(outputs.logits_per_text, outputs.logits_per_audio.T)
    diagonal = outputs.logits_per_audio.diagonal()
    loss = (outputs.logits_per_audio.logsumexp(0) + outputs.logits_per_audio.logsumexp(1) - 2 * diagonal).mean() / 2
    torch.testing.assert_close(outputs.loss, loss)
    assert [tuple(states.shape) for states in outputs.audio_model_output.hidden_states] == [(6, 31, 64)] * 3  # 2 chunks a clip
    as_tuple = model(**inputs, return_loss=True, return_dict=False)
    torch.testing.assert_close(as_tuple[0], outputs.loss)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    torch.testing.assert_close(model(**inputs).logits_per_audio, cosines * 100)


def test_both_towers_train(make_model, processor):
    model = make_model().train()
    model.activation_checkpointing_enable()
    inputs = processor(text=CAPTIONS, audio=[noise(16000), chirp(9000), noise(30000, 1)], sampling_rate=16000)
    model(**inputs, return_loss=True).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert without == []


def test_wrong_inputs_are_named(make_model):
    model = make_model()
    (clip,) = features(50)
    with pytest.raises(ValueError, match=r"\[batch, frames, 80\], got \[50, 80\]"):
        model.get_audio_features(clip)
    with pytest.raises(ValueError, match=r"input_lengths must be \[1\], one for each clip, got \[1, 1\]"):
        model.get_audio_features(clip[None], torch.tensor([[50]]))
    with pytest.raises(ValueError, match=r"a caption of 513 tokens .* takes 512 at most; pass truncation=True"):
        model.get_text_features(torch.ones(1, 513, dtype=torch.long))
    with pytest.raises(StrictDataclassError, match=r"hidden_size \(768\) and text_config.hidden_size \(64\) must be equal"):
        M2dClapConfig(text_config=BertConfig(hidden_size=64, num_attention_heads=2))
    with pytest.raises(StrictDataclassError, match=r"num_mel_bins \(80\) must be divisible by patch_height \(24\)"):
        M2dClapAudioConfig(patch_height=24)


def test_zero_shot_pipeline_of_transformers(make_model, processor):
    model = make_model()
    classify = pipeline(
        "zero-shot-audio-classification",
        model=model,
        feature_extractor=processor.feature_extractor,
        tokenizer=processor.tokenizer,
    )
    scores = classify(noise(16000), candidate_labels=["dog", "rain"], hypothesis_template="a {} barks")
    inputs = processor(text=["a dog barks", "a rain barks"], audio=noise(16000), sampling_rate=16000)
    expected = model(**inputs).logits_per_audio[0].softmax(0).tolist()
    assert {score["label"]: score["score"] for score in scores} == pytest.approx(
        dict(zip(["dog", "rain"], expected, strict=True))
    )


# --- Converter -----------------------------------------------------------------------------------------------------------


def released_tensors(model, with_text: bool = True) -> dict[str, torch.Tensor]:
    """A model's weights by the names of the release."""
    renames = [
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (r"embeddings\.patch_embeddings", "patch_embed.proj"),
        (r"^layer_norm", "norm"),
        (r"^layers", "blocks"),
        (r"\.attention\.", ".attn."),
        (r"\.fc", ".mlp.fc"),
        (r"^projection\.semantic_token", "audio_proj.sem_token"),
        (r"^projection\.blocks", "audio_proj.sem_blocks"),
        (r"^projection\.layer_norm", "audio_proj.norm"),
        (r"^projection\.linear_1", "audio_proj.0"),
        (r"^projection\.linear_2", "audio_proj.2"),
    ]
    tensors = {"norm_stats": torch.tensor([-6.5, 3.25])}
    for name, tensor in model.audio_model.state_dict().items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor.clone()
    if with_text:
        tensors |= {f"text_encoder.{name}": tensor.clone() for name, tensor in model.text_model.encoder.state_dict().items()}
        tensors["text_encoder.pooler.dense.weight"] = torch.zeros(64, 64)
        tensors["text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    return tensors


@pytest.fixture(scope="module")
def model_2025(make_model):
    return make_model()


@pytest.fixture(scope="module")
def text_folder(make_model, tokenizer, tmp_path_factory):
    """A text encoder as the Hub has it, in half precision like GTE's."""
    folder = tmp_path_factory.mktemp("text_encoder")
    torch.manual_seed(1)
    BertModel(make_model().config.text_config).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def convert(tmp_path, text_folder):
    """Writes a checkpoint into a folder of the given name and converts it."""

    def convert(checkpoint, name=NAME_2025, **arguments):
        (tmp_path / name).mkdir(exist_ok=True)
        torch.save(checkpoint, tmp_path / name / "checkpoint-30.pth")
        return convert_m2d_clap(tmp_path / name / "checkpoint-30.pth", tmp_path / "out", text_folder, **arguments)

    return convert


def prefixed(prefix):
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def renamed(pattern, replacement):
    return lambda tensors: {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}


NAMINGS = {
    "bare": lambda tensors: tensors,
    "wrapped": lambda tensors: {"model": tensors, "epoch": 30, "args": argparse.Namespace(lr=0.1)},
    "backbone": prefixed("backbone."),
    "runtime": lambda tensors: {"model": prefixed("module.ar.runtime.backbone.")(tensors)},
    "text wrapper": renamed(r"^text_encoder\.", "text_encoder.text_encoder."),
    "projection at the root": lambda tensors: renamed(r"^audio_proj\.norm", "sem_norm")(
        renamed(r"^audio_proj\.sem_", "sem_")(tensors)
    ),
    "one block without number": renamed(r"sem_blocks\.0", "sem_block"),
    "pre-training parts": lambda tensors: {
        **tensors,
        "mask_token": torch.zeros(1),
        "decoder_blocks.0.norm1.weight": torch.ones(3),
    },
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_gives_the_same_weights(convert, model_2025, naming):
    folder = convert(NAMINGS[naming](released_tensors(model_2025)))
    actual, expected = load_file(folder / "model.safetensors"), model_2025.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_a_converted_folder_is_complete(convert, model_2025, capsys):
    folder = convert(released_tensors(model_2025) | {"logit_scale": torch.tensor([3.5])})
    assert "SOFTWARE LICENSE AGREEMENT FOR EVALUATION" in capsys.readouterr().out
    assert "SOFTWARE LICENSE AGREEMENT FOR EVALUATION" in (folder / NOTICE_FILE).read_text()
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert type(model) is M2dClapModel
    assert (model.config.text_pooling, model.config.checkpoint_name) == ("cls", NAME_2025)
    assert (model.config.audio_config.input_frames, model.config.audio_config.num_attention_heads) == (100, 1)
    assert model.logit_scale.item() == 3.5
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    assert (extractor.norm_mean, extractor.norm_std) == (-6.5, 3.25)
    inputs = processor(text=CAPTIONS, audio=noise(20000), sampling_rate=16000)
    with torch.no_grad():
        model_2025_logits = model_2025(**inputs).logits_per_audio * 0.07
        for attn_implementation in ("sdpa", "eager"):
            model = AutoModel.from_pretrained(folder, attn_implementation=attn_implementation)
            assert model.audio_model.layers[0].attention.config._attn_implementation == attn_implementation
            torch.testing.assert_close(model(**inputs).logits_per_audio, model_2025_logits * math.exp(3.5))


def test_a_checkpoint_of_2024_takes_its_text_encoder_from_elsewhere(convert, make_model, text_folder):
    model = make_model({"projection_type": "mlp"}, text_pooling="mean")
    folder = convert(released_tensors(model, with_text=False), name=NAME_2024)
    converted = M2dClapModel.from_pretrained(folder)
    assert (converted.config.text_pooling, converted.config.audio_config.projection_type) == ("mean", "mlp")
    for model_2024 in (converted, M2dClapModel(converted.config)):
        assert {parameter.dtype for parameter in model_2024.parameters()} == {torch.float32}
    text = BertModel.from_pretrained(text_folder, dtype=torch.float32).embeddings.word_embeddings.weight
    assert torch.equal(converted.text_model.encoder.embeddings.word_embeddings.weight, text)
    (clip,) = features(90)
    with torch.no_grad():
        torch.testing.assert_close(converted.audio_model(clip[None])[1], model.audio_model(clip[None])[1])


def without(pattern):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not re.search(pattern, name)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without(r"^blocks\.0\.mlp\.fc2\.bias"), r"missing: audio_model\.layers\.0\.fc2\.bias \[64\]"),
        (without(r"sem_blocks\.0\.attn\.qkv\.weight"), r"missing: audio_model\.projection\.blocks\.0\.attention\.qkv\.weight"),
        (without(r"^audio_proj"), "has no projection .* it holds nothing"),
        (without("sem_token"), r"has no projection .* it holds .*sem_blocks"),
        (without("norm_stats"), "lacks norm_stats"),
        (without("^text_encoder"), "lacks the trained text encoder"),
        (without(r"text_encoder.*word_embeddings"), r"missing: text_model\.encoder\.embeddings\.word_embeddings\.weight"),
        (without("patch_embed"), r"lacks patch_embed\.proj\.weight"),
        (lambda t: {**t, "pos_embed": torch.zeros(1, 32, 64)}, r"position_embeddings: \[1, 32, 64\], expected \[1, 31, 64\]"),
        (lambda t: {**t, "head.weight": torch.zeros(527, 64)}, r"tensors that no part of M2D-CLAP has: head\.weight"),
        (lambda t: {**t, "blocks.0.extra": torch.zeros(2)}, r"unexpected: audio_model\.layers\.0\.extra \[2\]"),
        (lambda t: {**t, "backbone.cls_token": torch.zeros(1, 1, 64)}, "two tensors for cls_token"),
        (lambda t: {**t, "sem_norm.bias": torch.zeros(64)}, r"several tensors for the same part .*audio_proj\.norm\.bias"),
        (lambda t: {**t, "text_encoder.text_encoder.embeddings.LayerNorm.bias": torch.zeros(64)}, "two tensors for the text"),
        (lambda t: {"model": [1]}, "holds a list"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(convert, model_2025, tmp_path, damage, message):
    with pytest.raises(ValueError, match=message):
        convert(damage(released_tensors(model_2025)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("downloads", r"'downloads' is no name of an M2D-CLAP checkpoint.*name='m2d_clap_vit_base-"),
        ("m2d_clap_vit_base-80x1001p16x16p16kpNpTI-2025", "text encoder N"),
        ("m2d_clap_vit_base-80x1001p16x16p32kpBpTI-2025", "a model of 32 kHz"),
        ("m2d_clap_vit_tiny-80x100p24x16p16kpBpTI-2025", r"(?s)make no model named.*must be divisible by patch_height"),
        ("m2d_clap_vit_tiny-80x100p80x2p16kpBpTI-2025", r"patch_embeddings\.weight: .* expected \[64, 1, 80, 2\]"),
    ],
)
def test_a_name_without_a_supported_architecture_is_refused(convert, model_2025, name, message):
    tensors = released_tensors(model_2025)
    with pytest.raises(ValueError, match=message):
        convert(tensors, name=name)


def test_a_moved_file_needs_its_name(model_2025, text_folder, tmp_path):
    torch.save(released_tensors(model_2025), tmp_path / "m2d.pth")
    folder = convert_m2d_clap(tmp_path / "m2d.pth", tmp_path / "out", text_folder, name=NAME_2025)
    assert M2dClapModel.from_pretrained(folder).config.checkpoint_name == NAME_2025


class Malicious:
    def __reduce__(self):
        return (open, ("pickle_was_executed", "w"))


def test_pickled_code_is_not_executed(convert, model_2025, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint of tensors"):
        convert({"model": released_tensors(model_2025), "args": Malicious()})
    assert not (tmp_path / "pickle_was_executed").exists()


# --- License -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [lambda model: model, lambda model: model.audio_model])
def test_the_model_itself_uploads_nothing_and_names_the_command_that_asks_first(model_2025, tmp_path, monkeypatch, part):
    monkeypatch.setattr("transformers.PreTrainedModel.push_to_hub", lambda *_, **__: pytest.fail("uploaded"))
    model = part(model_2025)
    for upload in (
        lambda: model.push_to_hub("user/m2d"),
        lambda: model.save_pretrained(tmp_path / "new", push_to_hub=True),
        lambda: model.save_pretrained(tmp_path / "new", True, None, True),
    ):
        with pytest.raises(PermissionError, match=r"(?s)EVALUATION.*xacle push FOLDER REPO_ID --accept-license"):
            upload()
    assert not (tmp_path / "new").exists()
    model.save_pretrained(tmp_path / "new")
    assert (tmp_path / "new" / NOTICE_FILE).exists()
