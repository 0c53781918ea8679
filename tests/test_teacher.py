"""CLAP teachers: the same sound and caption always get the same score, and training on ratings makes it agree with them."""

import csv
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile as sf
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, PreTrainedTokenizerFast

from xacle.clap.encoder import ClapEncoder
from xacle.scoring.metrics import alignment_metrics
from xacle.train.data import read_table
from xacle.train.teacher.human_clap import (
    PROJECTION_PREFIXES,
    TeacherArguments,
    TeacherCollator,
    choose_parameters,
    human_clap_loss,
    main,
)

SOUNDS = ("a low tone", "a high tone", "noise", "clicks")
RATE = 16000


def make_sound(name, generator, seconds=0.25):
    time = np.arange(int(seconds * RATE)) / RATE
    noise = generator.standard_normal(len(time))
    if name == "a low tone":
        wave = np.sin(2 * np.pi * generator.uniform(180, 300) * time)
    elif name == "a high tone":
        wave = np.sin(2 * np.pi * generator.uniform(3000, 5000) * time)
    elif name == "noise":
        wave = noise / 3
    else:
        wave = noise * np.exp(-60 * (time % generator.uniform(0.15, 0.25)))
    return (0.3 * wave).astype(np.float32)


def tiny_clap_tokenizer():
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(SOUNDS, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def tiny_clap(fusion=True, seed=0):
    """A `ClapModel` of 60K random weights of 1 s inputs at 48 kHz, and its processor."""
    text = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    audio = {
        "num_mel_bins": 16,
        "spec_size": 64,
        "window_size": 4,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "patch_embeds_hidden_size": 16,
        "hidden_size": 32,
        "hidden_dropout_prob": 0.0,
        "enable_fusion": fusion,
        "fusion_type": "aff_2d" if fusion else None,
    }
    extractor = ClapFeatureExtractor(feature_size=16, max_length_s=1, truncation="fusion" if fusion else "rand_trunc")
    torch.manual_seed(seed)
    model = ClapModel(ClapConfig(projection_dim=16, text_config=text, audio_config=audio))
    statistics = model.audio_model.audio_encoder.batch_norm  # of the dB of these sounds
    statistics.running_mean.fill_(-30.0)
    statistics.running_var.fill_(400.0)
    return model, ClapProcessor(extractor, tiny_clap_tokenizer())


def save_tiny_clap(folder, **options):
    ClapEncoder(*tiny_clap(**options)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory):
    return save_tiny_clap(tmp_path_factory.mktemp("clap") / "clap")


@pytest.fixture(scope="module")
def teacher(clap_folder):
    return ClapEncoder.from_pretrained(clap_folder, device="cpu")


@pytest.fixture
def waveforms():
    """Noise of 2.5, 1, 0.3 and 0.01 s at 48 kHz."""
    generator = np.random.default_rng(0)
    return [(0.1 * generator.standard_normal(count)).astype(np.float32) for count in (120000, 48000, 14400, 480)]


# --- The interface -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", [True, False])
@torch.no_grad()
def test_an_embedding_is_always_the_same(fusion, waveforms):
    teacher = ClapEncoder(*tiny_clap(fusion))
    state = np.random.get_state()
    together = teacher.embed_audio(waveforms)
    assert together.shape == (4, 16) and together.dtype == torch.float32
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(4))
    for seed in range(3):  # the extractor crops long clips, and marks one of the short ones, at random
        np.random.seed(seed)
        torch.testing.assert_close(teacher.embed_audio(waveforms), together, rtol=0, atol=0)
    np.random.set_state(state)
    alone = torch.cat([teacher.embed_audio([waveform]) for waveform in waveforms])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)
    beginning = teacher.embed_audio([waveforms[0][:48000]])
    torch.testing.assert_close(beginning, alone[:1], rtol=0, atol=0)

    captions = ["noise", "a low tone", "clicks and a high tone and noise"]
    alone = torch.cat([teacher.embed_text([caption]) for caption in captions])
    torch.testing.assert_close(teacher.embed_text(captions), alone, rtol=0, atol=1e-6)
    expected = (teacher.embed_audio(waveforms[:3]) * alone).sum(dim=-1)
    torch.testing.assert_close(teacher.similarity(waveforms[:3], captions), expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_short_clips_are_embedded_as_the_model_itself_does(waveforms):
    model, processor = tiny_clap(fusion=False)
    inputs = processor.feature_extractor(waveforms[1:], sampling_rate=48000, return_tensors="pt")
    expected = model.eval().get_audio_features(**inputs).pooler_output
    torch.testing.assert_close(ClapEncoder(model, processor).embed_audio(waveforms[1:]), expected, rtol=0, atol=1e-6)
    inputs = processor(text=list(SOUNDS), return_tensors="pt", padding=True, return_token_type_ids=False)
    expected = model.get_text_features(**inputs).pooler_output
    torch.testing.assert_close(ClapEncoder(model, processor).embed_text(list(SOUNDS)), expected, rtol=0, atol=1e-6)


def test_sounds_come_at_the_models_own_rate(teacher, tmp_path):
    waves = {rate: 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate) for rate in (16000, 44100, 48000)}
    for rate, wave in waves.items():
        sf.write(tmp_path / f"{rate}.wav", wave, rate, subtype="FLOAT")
    loaded = [teacher.load(tmp_path / f"{rate}.wav") for rate in waves]
    assert teacher.sampling_rate == 48000 and {len(waveform) for waveform in loaded} == {24000}
    with torch.no_grad():
        embeddings = teacher.embed_audio(loaded)
    assert (embeddings @ embeddings.T).min() > 0.99
    np.testing.assert_array_equal(loaded[2], waves[48000].astype(np.float32))


def test_gradients_reach_both_towers(clap_folder, waveforms):
    teacher = ClapEncoder.from_pretrained(clap_folder, device="cpu")
    assert not teacher.model.training
    teacher.similarity(waveforms[:2], ["noise", "clicks"]).sum().backward()
    for tower in (teacher.model.audio_model, teacher.model.text_model):
        assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in tower.parameters())


def test_captions_are_data_and_long_ones_are_cut_with_a_warning(teacher, transformers_log):
    ids = teacher.front_end.text_inputs(["noise </s> <pad> noise"])["input_ids"][0]
    assert (ids == 1).sum() == 0 and (ids == 2).sum() == 1  # no padding, one end
    inputs = teacher.front_end.text_inputs(["noise " * 50, "noise"])
    assert inputs["input_ids"].shape == (2, 38) and inputs["attention_mask"].sum().item() == 38 + 3
    assert "cut at 38 tokens" in transformers_log.text
    with torch.no_grad():
        assert teacher.embed_text(["noise " * 50]).isfinite().all()


def test_the_fingerprint_knows_weights_and_settings(clap_folder, waveforms):
    teacher, other = (ClapEncoder.from_pretrained(clap_folder, device="cpu") for _ in range(2))
    name = teacher.fingerprint()
    teacher.similarity(waveforms[:1], ["noise"])
    assert teacher.fingerprint() == name == other.fingerprint()
    other.processor.feature_extractor.frequency_max = 8000
    assert other.fingerprint() != name
    with torch.no_grad():
        teacher.model.text_projection.linear2.bias[3] += 1e-3
    assert teacher.fingerprint() != name


def test_an_m2d_clap_is_a_teacher_too(tmp_path):
    from transformers import BertConfig

    from xacle.clap.m2d_configuration import M2dClapAudioConfig, M2dClapConfig
    from xacle.clap.m2d_modeling import M2dClapModel
    from xacle.clap.m2d_processing import M2dClapFeatureExtractor, M2dClapProcessor

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = BertConfig(**sizes, vocab_size=100, intermediate_size=32, max_position_embeddings=40)
    torch.manual_seed(0)
    model = M2dClapModel(M2dClapConfig(audio_config=M2dClapAudioConfig(**sizes), text_config=text))
    ClapEncoder(model, M2dClapProcessor(M2dClapFeatureExtractor(), tiny_clap_tokenizer())).save_pretrained(tmp_path / "m2d")
    teacher = ClapEncoder.from_pretrained(tmp_path / "m2d", device="cpu")
    assert teacher.sampling_rate == 16000 and teacher.embedding_size == 32
    generator = np.random.default_rng(0)
    clips = [make_sound(name, generator, seconds) for name, seconds in zip(SOUNDS, (11.0, 10.0, 3.0, 0.3), strict=True)]
    with torch.no_grad():
        together = teacher.embed_audio(clips)
        torch.testing.assert_close(torch.cat([teacher.embed_audio([clip]) for clip in clips]), together, rtol=0, atol=1e-5)
        torch.testing.assert_close(teacher.embed_audio([clips[0][: 10 * RATE]]), together[:1], rtol=0, atol=1e-5)
    sf.write(tmp_path / "short.wav", np.zeros(100), RATE)
    with pytest.raises(ValueError, match=r"short\.wav' has 100 samples at 16000 Hz; 201 are needed"):
        teacher.load(tmp_path / "short.wav")

    choose_parameters(teacher.model, TeacherArguments(train_parameters="projections"))
    trained = {name for name, parameter in teacher.model.named_parameters() if parameter.requires_grad}
    assert "logit_scale" in trained and len(trained) > 5
    assert all(name.startswith(PROJECTION_PREFIXES["m2d_clap"]) for name in trained)


def test_wrong_folders_are_reported(clap_folder, tiny_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no CLAP folder at 'no/such/folder'"):
        ClapEncoder.from_pretrained("no/such/folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"it has no config\.json"):
        ClapEncoder.from_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match="a model of type 'xacle'; a CLAP is of type 'clap' or 'm2d_clap'"):
        ClapEncoder.from_pretrained(tiny_folder)
    bare = tmp_path / "bare"
    ClapModel.from_pretrained(clap_folder).save_pretrained(bare)
    with pytest.raises(ValueError, match="holds no processor that can be loaded"):
        ClapEncoder.from_pretrained(bare, device="cpu")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(clap_folder / file, bare)
    with pytest.raises(ValueError, match="holds no processor that can be loaded"):
        ClapEncoder.from_pretrained(bare, device="cpu")
    mixed = save_tiny_clap(tmp_path / "mixed", fusion=False)
    shutil.copy(clap_folder / "processor_config.json", mixed)
    with pytest.raises(ValueError, match=r"truncates by 'fusion', which belongs to a model with fusion; use .*-unfused"):
        ClapEncoder.from_pretrained(mixed, device="cpu")
    model = ClapModel.from_pretrained(clap_folder)
    weights = {name: tensor for name, tensor in model.state_dict().items() if "text_projection" not in name}
    lacking = shutil.copytree(clap_folder, tmp_path / "lacking")
    model.save_pretrained(lacking, state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks text_projection\.linear1\.bias"):
        ClapEncoder.from_pretrained(lacking, device="cpu")
    (lacking / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="are damaged"):
        ClapEncoder.from_pretrained(lacking, device="cpu")


# --- The loss ------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_formula_of_the_docstring():
    generator = np.random.default_rng(0)
    audio, text = (generator.standard_normal((5, 8)) for _ in range(2))
    audio, text = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (audio, text))
    ratings = np.array([0.0, 2.5, 7.25, 10.0, 10.5])  # a standardized rating can leave its scale
    scale_a, scale_t, margin, zero, n = 3.0, 7.0, 0.05, -0.5, 5
    c, w, y = audio @ text.T, np.clip(ratings / 10, 0, 1), zero + (1 - zero) * ratings / 10
    wsce = mae = mse = pairwise = 0.0
    for i in range(n):
        over_captions = math.log(sum(math.exp(scale_a * c[i, j]) for j in range(n))) - scale_a * c[i, i]
        over_sounds = math.log(sum(math.exp(scale_t * c[j, i]) for j in range(n))) - scale_t * c[i, i]
        wsce += w[i] * (over_captions + over_sounds) / (2 * n)
        mae += abs(c[i, i] - y[i]) / n
        mse += (c[i, i] - y[i]) ** 2 / n
        for j in range(n):
            pairwise += max(0.0, abs((c[i, i] - c[j, j]) - (y[i] - y[j])) - margin) / (2 * n * n)
    inputs = [torch.tensor(values) for values in (audio, text, ratings)]
    scales = (torch.tensor(scale_a), torch.tensor(scale_t))
    for weights in (1, 1, 0, 0), (0, 0, 1, 0.15), (0.5, 2.0, 3.0, 4.0):
        names = ("wsce_weight", "mae_weight", "mse_weight", "margin_weight")
        chosen = TeacherArguments(**dict(zip(names, weights, strict=True)), margin=margin, cosine_of_zero=zero)
        expected = sum(weight * term for weight, term in zip(weights, (wsce, mae, mse, pairwise), strict=True))
        assert human_clap_loss(*inputs, scales, chosen).item() == pytest.approx(expected, abs=1e-9)


def test_senseless_losses_are_refused():
    for fields in {"wsce_weight": 0, "mae_weight": 0}, {"mae_weight": -1}, {"cosine_of_zero": 1}, {"train_parameters": "some"}:
        with pytest.raises(ValueError, match=r"terms' weights|cosine_of_zero|train_parameters"):
            TeacherArguments(**fields)


# --- Training ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    """Two tables: captions name the sound (7 to 10 points) or another one (0 to 3)."""
    folder = tmp_path_factory.mktemp("ratings")
    for name, count, seed in (("train", 320, 1), ("validation", 60, 2)):
        generator, rows = np.random.default_rng(seed), []
        for number in range(count):
            caption, other = generator.permutation(SOUNDS)[:2]
            matches = number % 2
            sf.write(folder / f"{name}{number}.wav", make_sound(caption if matches else other, generator), RATE)
            rating = generator.uniform(7, 10) if matches else generator.uniform(0, 3)
            rows.append((f"{name}{number}.wav", caption, f"{rating:.2f}"))
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("wav_file_name", "text", "average_score"), *rows])
    return folder


def command_line(model, ratings, output, **options):
    arguments = {
        "model_name_or_path": model,
        "train_file": ratings / "train.csv",
        "validation_file": ratings / "validation.csv",
        "output_dir": output,
        "feature_cache": "none",
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
        **options,
    }
    return [part for name, value in arguments.items() for part in (f"--{name}", str(value))]


def srcc(folder, ratings):
    """SRCC on the validation ratings of a teacher as a user loads it."""
    teacher, table = ClapEncoder.from_pretrained(folder, device="cpu"), read_table(ratings / "validation.csv")
    with torch.no_grad():
        clips = [teacher.load(audio) for audio in table.audio]
        similarity = teacher.similarity(clips, [table.captions[index] for index in table.caption_index])
    return alignment_metrics(similarity.numpy(), table.labels)["SRCC"]


def test_ratings_teach_what_matches(clap_folder, ratings, tmp_path):
    before = srcc(clap_folder, ratings)
    metrics = main(command_line(clap_folder, ratings, tmp_path / "run", num_train_epochs=6, learning_rate=2e-3))
    assert before < 0.2 and metrics["eval_SRCC"] > 0.55
    # A normal ClapModel folder, with the best checkpoint's weights.
    assert srcc(tmp_path / "run", ratings) == pytest.approx(metrics["eval_SRCC"], abs=1e-3)
    ClapModel.from_pretrained(tmp_path / "run")
    ClapProcessor.from_pretrained(tmp_path / "run")
    history = json.loads((tmp_path / "run/log_history.json").read_text())
    assert metrics["eval_SRCC"] == max(record["eval_SRCC"] for record in history if "eval_SRCC" in record)


def test_equal_ratings_are_enough_to_learn_what_belongs_together(clap_folder, ratings, tmp_path):
    """A teacher is trained by contrast as well, so that captioned sounds without ratings can all count as 10."""
    rows = (ratings / "train.csv").read_text().splitlines()
    equal = tmp_path / "train.csv"
    equal.write_text("\n".join([rows[0], *(row.rpartition(",")[0] + ",10" for row in rows[1:])]))
    options = {
        "train_file": equal,
        "audio_dir": ratings,
        "max_steps": 1,
        "eval_strategy": "no",
        "load_best_model_at_end": False,
    }
    main(command_line(clap_folder, ratings, tmp_path / "run", **options))
    assert (tmp_path / "run" / "model.safetensors").is_file()


def weights_of(folder):
    return ClapModel.from_pretrained(folder).state_dict()


def test_projections_alone_are_trained_and_runs_repeat(clap_folder, ratings, tmp_path):
    options = {"train_parameters": "projections", "num_train_epochs": 1, "learning_rate": 1e-2}
    for run in ("first", "second"):
        main(command_line(clap_folder, ratings, tmp_path / run, **options))
    before, first, second = (weights_of(folder) for folder in (clap_folder, tmp_path / "first", tmp_path / "second"))
    changed = {name for name in before if not torch.equal(before[name], first[name])}
    assert changed == {name for name in before if name.startswith(PROJECTION_PREFIXES["clap"])}
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_whole_model_is_trained_but_for_what_no_clip_reaches(clap_folder, ratings, tmp_path):
    main(command_line(clap_folder, ratings, tmp_path / "run", max_steps=2, eval_strategy="no", load_best_model_at_end=False))
    before, after = weights_of(clap_folder), weights_of(tmp_path / "run")
    frozen = ("fusion_model", "mel_conv2d", "batch_norm")
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    constants = ("position_ids", "token_type_ids", "relative_position_index")
    assert all(any(part in name for part in (*frozen, *constants)) for name in unchanged)
    assert {part for part in frozen if any(part in name for name in unchanged)} == set(frozen)


def test_two_processes_train_as_one(clap_folder, ratings, tmp_path):
    """Two processes with half a batch each arrive at the weights of one with the whole batch."""
    shared = {"max_steps": 3, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    shared |= {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0, "lr_scheduler_type": "constant"}
    main(command_line(clap_folder, ratings, tmp_path / "one", **shared))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    shared |= {"per_device_train_batch_size": 8, "ddp_backend": "gloo"}
    arguments = command_line(clap_folder, ratings, tmp_path / "two", **shared)
    result = subprocess.run(
        [*launch, "-m", "xacle.train.teacher.human_clap", *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr[-3000:]
    before, one, two = (weights_of(folder) for folder in (clap_folder, tmp_path / "one", tmp_path / "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    assert max((one[name] - before[name]).abs().max() for name in one if one[name].is_floating_point()) > 1e-2


def test_a_clip_of_several_pairs_is_decoded_and_encoded_once(teacher, ratings, monkeypatch):
    loaded = []
    monkeypatch.setattr(teacher.front_end, "load", lambda audio: loaded.append(audio) or np.zeros(4800, np.float32))
    examples = [{"clip": clip, "audio": f"{clip}.wav", "text": "noise", "score": 5.0} for clip in (7, 3, 7)]
    batch = TeacherCollator(teacher.front_end)(examples)
    assert loaded == ["7.wav", "3.wav"] and len(batch["input_features"]) == 2
    assert batch["audio_index"].tolist() == [0, 1, 0] and batch["labels"].tolist() == [5.0] * 3


def test_a_run_without_a_model_or_table_is_refused(clap_folder, ratings, tmp_path):
    with pytest.raises(ValueError, match="pass --model-name-or-path"):
        main(["--train_file", "x.csv", "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"])
    arguments = command_line(clap_folder, ratings, tmp_path / "run", per_device_train_batch_size=400)
    with pytest.raises(ValueError, match=r"320 training pairs in .* do not fill one batch of 400"):
        main(arguments)


def test_an_m2d_clap_is_not_uploaded_without_the_flag(ratings, tmp_path, monkeypatch):
    from transformers import BertConfig, BertTokenizer

    from xacle.clap.m2d_configuration import M2dClapAudioConfig, M2dClapConfig
    from xacle.clap.m2d_modeling import M2dClapModel
    from xacle.clap.m2d_processing import M2dClapFeatureExtractor, M2dClapProcessor

    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    tokenizer = BertTokenizer(str(vocabulary))
    text = BertConfig(vocab_size=5, hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64)
    audio = M2dClapAudioConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=1)
    M2dClapModel(M2dClapConfig(audio_config=audio, text_config=text)).save_pretrained(tmp_path / "m2d")
    M2dClapProcessor(M2dClapFeatureExtractor(), tokenizer).save_pretrained(tmp_path / "m2d")
    arguments = command_line(tmp_path / "m2d", ratings, tmp_path / "run", push_to_hub="true", hub_model_id="someone/something")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(ValueError, match=r"(?s)EVALUATION.*--accept-license true"):
        main(arguments)
    assert not list((tmp_path / "run").glob("*"))
