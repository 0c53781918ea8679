"""Publishing: what is uploaded, under which license, what the card claims; and the round trip over a Hub of our own."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile as sf
import torch
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from xacle.cli import app
from xacle.configuration_xacle import XacleConfig
from xacle.conversion.beats import BEATS_LICENSE
from xacle.conversion.tmu import convert_tmu
from xacle.core.provenance import NTT_EVALUATION, TMU, TMU_LICENSE, sources_of, weight_source, weights_checksum
from xacle.demo.tiny_models import CAPTIONS, make_sound
from xacle.publish.license import LICENSES, terms_of
from xacle.publish.push import prepare
from xacle.scoring.scorer import Scorer
from xacle.train import stage1_captioning, stage2_pseudo_labels, stage3_ratings

BEATS = weight_source("audio encoder", "BEATs (BEATs_iter3_plus_AS2M.pt), by Microsoft", BEATS_LICENSE)
QWEN = weight_source("language model", "Qwen/Qwen2.5-0.5B-Instruct", "apache-2.0")
RELEASED = weight_source("scorer", TMU, TMU_LICENSE)
M2D = weight_source("teacher", "m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025", NTT_EVALUATION)
UNKNOWN = weight_source("scorer", "model.pt", None)
CODE = {f"{name}_xacle.py" for name in ("audio", "configuration", "modeling", "pipeline", "processing")} | {"modeling_beats.py"}


def edit_json(file, **fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def metadata_of(text: str) -> dict:
    return ModelCard(text).data.to_dict()


@pytest.fixture(scope="module")
def model(tiny_folder, tmp_path_factory):
    """The tiny scorer, as if put together from BEATs and Qwen."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("publish") / "model")
    edit_json(folder / "config.json", weight_sources=[BEATS, QWEN])
    return folder


@pytest.fixture(scope="module")
def trained(task, model, tmp_path_factory):
    """A short run of stage 3 that starts from `model`."""
    folder = tmp_path_factory.mktemp("publish") / "run"
    metrics = stage3_ratings.main(task.arguments(folder, model_name_or_path=model, num_train_epochs=8))
    return folder, metrics


# --- Licenses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "wish", "license", "name", "notices"),
    [
        ([BEATS, QWEN], None, "apache-2.0", None, 0),
        ([BEATS, QWEN], "mit", "mit", None, 0),
        ([BEATS, RELEASED], None, "cc-by-nc-4.0", None, 1),
        ([RELEASED], "cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0", None, 1),
        ([BEATS, QWEN, M2D], None, "other", "ntt-evaluation", 1),
        ([RELEASED, M2D], None, "other", "ntt-evaluation", 2),
        ([UNKNOWN], "mit", "mit", None, 1),
        ([weight_source("language model", "a/b", "gpl-3.0")], None, "gpl-3.0", None, 1),
        ([weight_source("language model", "a/b", "some-community")], None, "other", "some-community", 1),
    ],
)
def test_what_a_model_derives_from_decides_its_license(sources, wish, license, name, notices):
    terms = terms_of(sources, wish, accepted=True)
    assert (terms.license, terms.license_name, len(terms.notices)) == (license, name, notices)
    if notices:
        with pytest.raises(ValueError, match="--accept-license"):
            terms_of(sources, wish)


@pytest.mark.parametrize(
    ("sources", "wish", "message"),
    [
        ([BEATS], "MIT", "the Hub knows no license 'MIT'; did you mean 'mit'"),
        ([BEATS], "mine", "it knows .*apache-2.0"),
        ([RELEASED], "apache-2.0", "(?s)'apache-2.0' is not possible, only cc-by-nc-2.0.*CC-BY-NC-4.0"),
        ([weight_source("language model", "a/b", "cc-by-nc-sa-3.0")], "mit", "'mit' is not possible, only cc-by-nc-2.0"),
        ([M2D], "cc-by-nc-4.0", "(?s)only other:.*NTT"),
        ([UNKNOWN], None, "not recorded under which license 'model.pt'"),
    ],
)
def test_licenses_that_cannot_be(sources, wish, message):
    with pytest.raises(ValueError, match=message):
        terms_of(sources, wish, accepted=True)
    assert wish in (None, "MIT", "mine") or wish in LICENSES


def test_conversion_records_where_weights_come_from(released_folder, tmp_path, monkeypatch):
    """A checkpoint in the authors' format may be theirs; of the repository they published, the license is known."""
    [source] = XacleConfig.from_pretrained(released_folder).weight_sources
    assert source == {"role": "scorer", "name": f"tmu, a checkpoint in the format of {TMU}", "license": None}
    from conftest import GOLDEN

    shutil.copytree(GOLDEN / "tmu", tmp_path / "downloaded")
    (tmp_path / "downloaded/README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    folder = convert_tmu(tmp_path / "downloaded", tmp_path / "local")
    assert XacleConfig.from_pretrained(folder).weight_sources[0]["license"] == "cc-by-nc-4.0"
    monkeypatch.setattr("xacle.conversion.tmu.snapshot_download", lambda *args, **kwargs: str(GOLDEN / "tmu"))
    published = convert_tmu(TMU, tmp_path / "published", llm=str(GOLDEN / "tmu/qwen_tiny"))
    assert XacleConfig.from_pretrained(published).weight_sources == [RELEASED]
    with pytest.raises(ValueError, match=r"(?s)CC-BY-NC-4.0.*--accept-license"):
        prepare(published, "me/model")
    publication = prepare(published, "me/model", accept_license=True)
    assert metadata_of(publication.card)["license"] == "cc-by-nc-4.0"
    assert metadata_of(publication.card)["base_model"] == [TMU]
    # Folders converted before this was recorded still have the card that says it.
    edit_json(published / "config.json", weight_sources=None)
    assert sources_of({"model_type": "xacle"}, "scorer", published) == [weight_source("scorer", published, "cc-by-nc-4.0")]


def test_a_teachers_license_follows_its_pseudo_labels(task, model, tmp_path):
    from transformers import BertConfig, BertTokenizer

    from xacle.clap.m2d_configuration import M2dClapAudioConfig, M2dClapConfig
    from xacle.clap.m2d_modeling import M2dClapModel
    from xacle.clap.m2d_processing import M2dClapFeatureExtractor, M2dClapProcessor
    from xacle.train.teacher.pseudo_labels import pseudo_label

    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    text = BertConfig(vocab_size=5, hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64)
    audio = M2dClapAudioConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=1)
    M2dClapModel(M2dClapConfig(audio_config=audio, text_config=text)).save_pretrained(tmp_path / "m2d")
    M2dClapProcessor(M2dClapFeatureExtractor(), BertTokenizer(str(vocabulary))).save_pretrained(tmp_path / "m2d")
    labels, cache = tmp_path / "labels.csv", tmp_path / "cache"
    pseudo_label(
        tmp_path / "m2d",
        task.folder / "train_captions.csv",
        labels,
        task.folder / "wav",
        negatives_per_pair=1,
        feature_cache=cache,
    )

    options = {"model_name_or_path": model, "train_file": labels, "validation_file": None, "max_steps": 1}
    stage2_pseudo_labels.main(task.arguments(tmp_path / "stage2", **options))
    options = {"model_name_or_path": tmp_path / "stage2", "validation_file": None, "max_steps": 1}
    stage3_ratings.main(task.arguments(tmp_path / "stage3", **options))
    teacher = weight_source("teacher", "m2d", NTT_EVALUATION)
    assert XacleConfig.from_pretrained(tmp_path / "stage3").weight_sources == [BEATS, QWEN, teacher]
    with pytest.raises(ValueError, match=r"(?s)m2d \(teacher\).*EVALUATION.*--accept-license"):
        prepare(tmp_path / "stage3", "me/model")
    publication = prepare(tmp_path / "stage3", "me/model", accept_license=True)
    metadata = metadata_of(publication.card)
    assert (metadata["license"], metadata["license_name"]) == ("other", "ntt-evaluation")
    assert metadata["license_link"] in publication.files and b"NTT" in publication.files[metadata["license_link"]]
    assert "### Stage 2: pseudo-labels, its starting point" in publication.card

    labels.with_name("labels.csv.teacher.json").unlink()
    options = {"model_name_or_path": model, "train_file": labels, "validation_file": None, "max_steps": 1}
    stage2_pseudo_labels.main(task.arguments(tmp_path / "again", **options))
    assert XacleConfig.from_pretrained(tmp_path / "again").weight_sources[-1]["license"] is None


# --- What is uploaded ----------------------------------------------------------------------------------------------------


def test_a_trained_folder_is_uploaded_without_the_rest_of_its_run(trained):
    folder, _ = trained
    publication = prepare(folder, "me/model")
    kept = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(publication.files) == kept | CODE | {"README.md", "handler.py", "requirements.txt"}
    assert {"run.json", "training_args.bin", "log_history.json"} <= set(publication.left_out)
    assert any(name.startswith("checkpoint-") for name in publication.left_out)
    assert publication.sizes()["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert not (folder / "README.md").exists()


def test_a_checkpoints_card_has_what_that_checkpoint_measured(trained):
    folder = max(trained[0].glob("checkpoint-*"))
    results = ModelCard(prepare(folder, "me/model").card).data.eval_results
    [found] = [
        entry for entry in json.loads((folder / "trainer_state.json").read_text())["log_history"] if "eval_SRCC" in entry
    ][-1:]
    assert {result.metric_name: result.metric_value for result in results}["SRCC"] == found["eval_SRCC"]


def test_shards_are_uploaded_and_must_all_be_there(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "sharded")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for file in set(names.values()):
        save_file({name: tensors[name] for name in names if names[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert {"model.safetensors.index.json", *names.values()} <= set(prepare(folder, "me/model").files)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model-00002-of-00002\.safetensors"):
        prepare(folder, "me/model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no model folder at"),
        (lambda folder: (folder / "config.json").unlink(), "no complete model folder: it has no config.json"),
        (lambda folder: edit_json(folder / "config.json", model_type="bert"), "of type 'bert'"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "--lora-output merged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "it has no tokenizer.json"),
        (lambda folder: (folder / "processor_config.json").unlink(), "it has no processor_config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json' is damaged: Expecting"),
        (lambda folder: (folder / "run.json").write_text("[]"), "run.json' is damaged: it holds no JSON object"),
        (lambda folder: os.truncate(folder / "model.safetensors", 1000), "model.safetensors' is damaged"),
        (lambda folder: (folder / "modeling_beats.py").unlink(), "lacks modeling_beats.py"),
        (lambda folder: (folder / "pipeline_xacle.py").unlink(), "lacks pipeline_xacle.py"),
        (
            lambda folder: edit_json(folder / "config.json", auto_map={"AutoModel": "other/repo--modeling_xacle.Model"}),
            "takes its code from another repository",
        ),
    ],
)
def test_incomplete_folders_are_refused(model, tmp_path, change, message):
    folder = shutil.copytree(model, tmp_path / "model")
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(folder, "me/model")


def test_the_command_says_what_is_wrong(model, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    run = CliRunner().invoke(app, ["push", str(model), "me/model"])
    assert isinstance(run.exception, ValueError) and "no token for the Hub: log in with `hf auth login`" in str(run.exception)
    run = CliRunner().invoke(app, ["push", str(model), "me/my/model", "--dry-run"])
    assert "'me/my/model' is no name on the Hub" in str(run.exception)
    run = CliRunner().invoke(app, ["push", str(model), "model", "--dry-run"])
    assert run.exit_code == 2 and "must be owner/name" in run.output
    run = CliRunner().invoke(app, ["push", str(model), "me/model", "--dry-run", "--example", "dog.wav"])
    assert run.exit_code == 2 and "FILE=CAPTION" in run.output
    run = CliRunner().invoke(app, ["push", str(model), "me/model", "--show-card"])
    assert run.exit_code == 2 and "goes with --dry-run" in run.output
    run = CliRunner().invoke(app, ["push", str(model), "me/model", "--dry-run", "--example", "none.wav=x"])
    assert "no sound for an example at 'none.wav'" in str(run.exception)
    run = CliRunner().invoke(app, ["push", str(model), "me/model", "--dry-run", "--dataset", "my ratings"])
    assert "'my ratings' is no name on the Hub" in str(run.exception)


def test_a_dry_run_shows_the_files_their_sizes_and_the_card(trained, tmp_path):
    sf.write(tmp_path / "my rain.wav", make_sound("rain", 2.0), 16000)
    command = ["push", str(trained[0]), "me/model", "--dry-run", "--show-card", "--dataset", "me/ratings"]
    run = CliRunner().invoke(app, [*command, "--example", f"{tmp_path}/my rain.wav=Rain | falls"])
    assert run.exit_code == 0, run.exception
    listed = dict(reversed(line.split(maxsplit=1)) for line in re.findall(r"^ *[\d,]+  \S+$", run.stdout, flags=re.MULTILINE))
    assert int(listed["model.safetensors"].replace(",", "")) == (trained[0] / "model.safetensors").stat().st_size
    assert int(listed["examples/my_rain.wav"].replace(",", "")) == (tmp_path / "my rain.wav").stat().st_size
    assert "license: apache-2.0" in run.stdout and re.search("not uploaded: .*run.json", run.stdout)
    card = run.stdout[run.stdout.index("---\n") :]
    [score] = Scorer.from_pretrained(trained[0]).score([tmp_path / "my rain.wav"], ["Rain | falls"])
    metadata = metadata_of(card)
    assert metadata["datasets"] == ["me/ratings"]
    assert metadata["widget"] == [
        {
            "src": "https://huggingface.co/me/model/resolve/main/examples/my_rain.wav",
            "example_title": "Rain | falls",
            "output": {"text": f"{score:.2f}"},
        }
    ]
    assert f"| [my_rain.wav](examples/my_rain.wav) | Rain \\| falls | {score:.2f} |" in card


# --- The card ------------------------------------------------------------------------------------------------------------


def test_the_cards_metadata_is_valid_and_measured(trained):
    """With the library's own checks that need no network: parsing, and `model-index` there and back."""
    folder, metrics = trained
    card = ModelCard(prepare(folder, "me/my-scorer").card)
    metadata = card.data.to_dict()
    assert ModelCardData(**metadata).to_dict() == metadata
    expected = {"license": "apache-2.0", "library_name": "transformers", "pipeline_tag": "audio-classification"}
    assert expected.items() <= metadata.items()
    assert metadata["base_model"] == ["Qwen/Qwen2.5-0.5B-Instruct"]
    assert metadata["metrics"] == ["spearmanr", "pearsonr", "kendalltau", "mse"]
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "my-scorer"
    measured = {f"eval_{result.metric_name}": result.metric_value for result in results}
    assert measured == {name: metrics[name] for name in ("eval_SRCC", "eval_LCC", "eval_KTAU", "eval_MSE")}
    assert {(result.dataset_name, result.dataset_split) for result in results} == {("validation.csv (16 pairs)", "validation")}
    assert "widget" not in metadata and "datasets" not in metadata


def test_the_card_has_how_the_weights_came_about(trained, task):
    folder, metrics = trained
    text = prepare(folder, "me/my-scorer").card
    config = json.loads((folder / "config.json").read_text())
    assert f"`{config['score_shift']:.4g} + {config['score_scale']:.4g} * logit`" in text
    assert "fitted by least squares to the 16 ratings of `validation.csv`" in text
    assert f"| SRCC | {metrics['eval_SRCC']:.4f} |" in text
    assert "learning_rate: 0.003\n" in text and "seed: 42\n" in text and f"torch {torch.__version__}\n" in text
    assert "It chose the checkpoint and calibrated the scores by the same\ntable" in text and "lora" not in text
    assert "* train: `ratings.csv`, 32 pairs, sha256:" in text
    assert "2602.00604" in text and "| language model | Qwen/Qwen2.5-0.5B-Instruct | apache-2.0 |" in text
    assert str(task.folder) not in text and str(folder.parent) not in text  # no folders of this machine
    assert "{{" not in text.replace("{{BEATs}", "").replace("{{Qwen", "") and "None" not in text


def test_what_was_not_measured_is_not_claimed(model, tmp_path):
    text = prepare(model, "me/model").card
    assert "model-index" not in text and "metrics" not in metadata_of(text) and "## Results" not in text
    assert "is not recorded here" in text and "No record of a training run" in text
    folder = shutil.copytree(model, tmp_path / "model")
    record = {"stage": "stage 3: ratings", "arguments": {}, "versions": {}, "validation_metrics": {"eval_SRCC": float("nan")}}
    record |= {"base_model": "me/base", "arguments": {"ModelArguments": {"model_name_or_path": "runs/stage1"}}}
    data = {"validation": {"table": "v.csv", "pairs": 2, "checksum": None}}
    record |= {"data": data, "weights": weights_checksum(folder)}
    (folder / "run.json").write_text(json.dumps(record))
    text = prepare(folder, "me/model").card
    assert "model-index" not in text and "did **not** fit these numbers" in text
    assert metadata_of(text)["base_model"] == ["Qwen/Qwen2.5-0.5B-Instruct", "me/base"]  # no folder that looks like a Hub id

    # MSE means something on the ratings' scale only, and nothing that was measured holds for weights that came later.
    record["validation_metrics"] = {"eval_SRCC": 0.5, "eval_MSE": 40.0}
    (folder / "run.json").write_text(json.dumps(record))
    assert metadata_of(prepare(folder, "me/model").card)["metrics"] == ["spearmanr"]
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    text = prepare(folder, "me/model").card
    assert "model-index" not in text and "No record of a training run" in text


def test_a_card_of_ones_own(model, tmp_path):
    card = tmp_path / "card.md"
    card.write_text("---\nlicense: [mit\n---\n# Mine\n")
    with pytest.raises(ValueError, match=r"the metadata at the head of '.*card.md' cannot be read"):
        prepare(model, "me/model", card=card)
    card.write_text("---\nlicense: mit\n---\n# Mine\n")
    assert prepare(model, "me/model", license="mit", card=card).files["README.md"] == card.read_bytes()
    with pytest.raises(ValueError, match=r"`license: mit`, but the model is published under apache-2\.0"):
        prepare(model, "me/model", card=card)
    folder = shutil.copytree(model, tmp_path / "model")
    edit_json(folder / "config.json", weight_sources=[RELEASED])
    card.write_text("---\nlicense: cc-by-nc-4.0\n---\n# Mine\n")
    with pytest.raises(ValueError, match=r"must say the following:\n.*CC-BY-NC-4.0"):
        prepare(folder, "me/model", accept_license=True, card=card)


def test_captioners_and_teachers_have_cards_of_their_own(task, model, tmp_path):
    from test_teacher import save_tiny_clap

    options = {"model_name_or_path": model, "max_steps": 1, "validation_file": task.folder / "validation_captions.csv"}
    metrics = stage1_captioning.main(task.arguments(tmp_path / "captioner", "train_captions", **options))
    publication = prepare(tmp_path / "captioner", "me/captioner")
    metadata = metadata_of(publication.card)
    assert metadata["pipeline_tag"] == "audio-text-to-text" and metadata["metrics"] == ["loss"]
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == metrics["eval_loss"]
    assert "AutoModelForMultimodalLM" in publication.card and "handler.py" not in publication.files
    folder = save_tiny_clap(tmp_path / "clap")
    publication = prepare(folder, "me/clap", license="mit", accept_license=True)
    assert "ClapModel.from_pretrained" in publication.card
    assert not any(name.endswith(".py") for name in publication.files)


# --- The Hub -------------------------------------------------------------------------------------------------------------

# No site of the user, no current folder, and no `xacle`, though it is installed for the tests.
ALONE = """
import sys
sys.modules["xacle"] = None
try:
    import xacle.modeling_xacle
except ImportError:
    pass
else:
    raise SystemExit("the package is there")
"""


def run_alone(code, *args, env) -> list[str]:
    command = [sys.executable, "-I", "-c", ALONE + code, *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, env=env, cwd=env["HF_HOME"])
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()


PULL = """
import json
import soundfile as sf, torch
from transformers import AutoModel, AutoProcessor, pipeline

def pull(repo, revision):
    options = {"trust_remote_code": True, "revision": revision}
    return AutoModel.from_pretrained(repo, **options), AutoProcessor.from_pretrained(repo, **options)

def scores(model, processor, sound, captions):
    with torch.no_grad():
        return model.eval()(**processor(text=captions, audio=sound)).scores.tolist()

repo, revision, sound, captions = *sys.argv[1:4], json.loads(sys.argv[4])
model, processor = pull(repo, revision)
found = {"scores": scores(model, processor, sound, captions)}
"""
USE = """
scorer = pipeline(model=repo, revision=revision, trust_remote_code=True)
found["pipeline"] = [scorer({"audio": sound, "text": caption})["score"] for caption in captions]

import importlib.util
from pathlib import Path
from huggingface_hub import snapshot_download
folder = Path(snapshot_download(repo, revision=revision))
found["files"] = sorted(path.name for path in folder.iterdir())
spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
handler = importlib.util.module_from_spec(spec)
spec.loader.exec_module(handler)
request = {"inputs": {"audio": Path(sound).read_bytes(), "text": captions}}
found["handler"] = handler.EndpointHandler(str(folder))(request)["scores"]
"""
AGAIN = """
revision = sys.argv[5]
found["published"] = scores(*pull(repo, revision), sound, captions)
"""
TUNE = """
from transformers import Trainer, TrainingArguments
rows = [{"text": caption, "label": float(label)} for label, caption in enumerate(captions)] * 2
def collate(rows):
    inputs = processor(text=[row["text"] for row in rows], audio=sound)
    return {**inputs, "labels": torch.tensor([row["label"] for row in rows])}
arguments = TrainingArguments(
    "run", max_steps=3, per_device_train_batch_size=4, learning_rate=1e-2, remove_unused_columns=False, report_to="none",
    save_strategy="no", use_cpu=True, disable_tqdm=True, dataloader_drop_last=True,
)
trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate)
trainer.train()
found["tuned"] = scores(model, processor, sound, captions)
model.push_to_hub("tester/tuned")
found["revision"] = processor.push_to_hub("tester/tuned").oid
model.save_pretrained(sys.argv[5])
processor.save_pretrained(sys.argv[5])
"""
SHOW = "print(json.dumps(found))"


def environment(hub, home) -> dict[str, str]:
    """Of a process that knows of nothing but the Hub."""
    home.mkdir(exist_ok=True)
    return {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "USE_TF": "0", **hub.env(home)}


def push(*arguments, env) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "xacle.cli", "push", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=env["HF_HOME"])


def test_the_round_trip(hub, model, tmp_path):
    sound, captions = tmp_path / "rain.wav", list(CAPTIONS.values())
    sf.write(sound, make_sound("rain", 3.0), 16000)
    reference = Scorer.from_pretrained(model).score([sound] * len(captions), captions)
    pushed = push(model, "tester/scorer", env=environment(hub, tmp_path / "a"))
    assert pushed.returncode == 0, pushed.stderr
    revision = pushed.stdout.strip().rpartition("/commit/")[2]
    assert re.fullmatch("[0-9a-f]{40}", revision)

    arguments = [sound, json.dumps(captions)]
    copy = tmp_path / "copy"
    code = PULL + USE + TUNE + SHOW
    found = json.loads(run_alone(code, "tester/scorer", revision, *arguments, copy, env=environment(hub, tmp_path / "b"))[-1])
    for name in ("scores", "pipeline", "handler"):
        assert found[name] == pytest.approx(reference, abs=1e-6), name
    assert {*CODE, "README.md", "handler.py", "requirements.txt"} <= set(found["files"])
    assert np.abs(np.subtract(found["tuned"], reference)).max() > 0.01  # it learnt something

    # What a plain Trainer leaves is published as well, and still knows where it comes from.
    pushed = push(copy, "tester/tuned", "--commit-message", "with a card", env=environment(hub, tmp_path / "a"))
    assert pushed.returncode == 0, pushed.stderr
    published = pushed.stdout.strip().rpartition("/commit/")[2]
    assert published != found["revision"]
    code = PULL + AGAIN + USE + SHOW
    arguments = ["tester/tuned", found["revision"], *arguments, published]
    again = json.loads(run_alone(code, *arguments, env=environment(hub, tmp_path / "c"))[-1])
    for name in ("scores", "published", "pipeline", "handler"):
        assert again[name] == pytest.approx(found["tuned"], abs=1e-6), name
    assert XacleConfig.from_pretrained(copy).weight_sources == [BEATS, QWEN]


def files_on(hub, repo: str, branch: str = "main") -> dict:
    """Path -> entry of a branch's files, as the server keeps them."""
    refs = json.loads((hub.folder / "models" / repo / "refs.json").read_text())
    return json.loads((hub.folder / "models" / repo / f"{refs['branches'][branch]}.json").read_text())["files"]


def content_of(hub, entry: dict) -> str:
    return (hub.folder / "blobs" / entry["sha256"]).read_text()


def test_branches_privacy_and_stale_weights(hub, model, tmp_path):
    env = environment(hub, tmp_path / "home")
    options = ("--private", "--revision", "trial", "--commit-message", "a trial")
    assert push(model, "tester/branches", *options, env=env).returncode == 0
    refs = hub.folder / "models/tester/branches/refs.json"
    state = json.loads(refs.read_text())
    assert state["private"] and set(state["branches"]) == {"main", "trial"}
    commit = json.loads(refs.with_name(f"{state['branches']['trial']}.json").read_text())
    assert commit["message"] == "a trial" and "model.safetensors" in commit["files"]
    assert files_on(hub, "tester/branches") == {}

    old = [
        "model.safetensors.index.json",
        "model-00001-of-00001.safetensors",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    old += ["pytorch_model.bin", "LICENSE_NOTICE.md", "notes.txt"]
    upload = "from huggingface_hub import HfApi\nfor name in sys.argv[1:]:\n" + (
        "    HfApi().upload_file(repo_id='tester/branches', path_or_fileobj=b'old', path_in_repo=name)"
    )
    run_alone(upload, *old, env=env)
    assert push(model, "tester/branches", env=env).returncode == 0
    present = set(files_on(hub, "tester/branches"))
    assert "notes.txt" in present and "model.safetensors" in present
    assert not {*old[:-1]} & present

    refs.write_text(json.dumps({**json.loads(refs.read_text()), "private": False}))
    refused = push(model, "tester/branches", "--private", env=env)
    assert refused.returncode == 1 and "is there already, and public" in refused.stderr
    refused = push(model, "somebody/model", env=env)
    assert refused.returncode == 1 and "may this token write there?" in refused.stderr
    assert "Traceback" not in refused.stderr
    refused = push(model, "tester/branches", env={**env, "HF_TOKEN": "hf_wrong"})
    assert refused.returncode == 1 and "is the token valid?" in refused.stderr


def test_stage_3_pushes_itself(hub, task, model, tmp_path):
    """With `every_save`, each checkpoint is a complete model as well; at the end comes the calibrated one."""
    options = {
        "model_name_or_path": model,
        "push_to_hub": "true",
        "hub_model_id": "tester/stage3",
        "hub_strategy": "every_save",
        "num_train_epochs": 8,  # enough to be calibrated
    }
    command = [sys.executable, "-m", "xacle.cli", "train", "ratings", *task.arguments(tmp_path / "run", **options)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment(hub, tmp_path / "home"), cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    files = files_on(hub, "tester/stage3")
    sha = json.loads((hub.folder / "models/tester/stage3/refs.json").read_text())["branches"]["main"]
    assert re.search(rf"pushed: \S+{sha}", run.stderr)
    assert set(files) == set(prepare(tmp_path / "run", "tester/stage3").files)
    trained = json.loads((tmp_path / "run" / "config.json").read_text())
    assert trained["score_scale"] != 5 and json.loads(content_of(hub, files["config.json"])) == trained
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    results = ModelCard(content_of(hub, files["README.md"])).data.eval_results
    assert {result.metric_name: result.metric_value for result in results}["SRCC"] == record["validation_metrics"]["eval_SRCC"]
    commits = []
    while sha:
        commits.append(json.loads((hub.folder / f"models/tester/stage3/{sha}.json").read_text()))
        sha = commits[-1]["parent"]
    messages = [commit["message"] for commit in commits]
    assert messages[0] == "Model save" and messages[1].startswith("Training in progress, step ")
    assert set(commits[1]["files"]) == set(files)
    assert "stage 3: ratings" in content_of(hub, commits[1]["files"]["README.md"]).lower()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hub_license": "mine"}, "knows no license"),
        ({"hub_strategy": "checkpoint"}, "--hub-strategy must be end or every_save"),
        ({"hub_model_id": "a/b/c"}, "no name on the Hub"),
        ({"lora_r": 2, "lora_output": "adapter"}, "--lora-output merged"),
    ],
)
def test_what_cannot_be_pushed_is_reported_before_training(task, model, tmp_path, monkeypatch, options, message):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    settings = {"model_name_or_path": model, "push_to_hub": "true", "hub_model_id": "tester/none", **options}
    with pytest.raises(ValueError, match=message):
        stage3_ratings.main(task.arguments(tmp_path / "run", **settings))
    assert not list((tmp_path / "run").glob("*"))


def test_an_unreachable_hub_is_reported_before_training_and_costs_no_trained_model(task, model, tmp_path, monkeypatch, caplog):
    """The address is one where nobody listens; pushing a checkpoint is not worth the run."""
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1"}
    home = tmp_path / "home"
    home.mkdir()
    env = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HF_HOME": str(home), **nobody}
    pushed = push(model, "me/model", env=env)
    assert pushed.returncode == 1 and "the Hub cannot be reached at http://127.0.0.1:9" in pushed.stderr
    assert "Traceback" not in pushed.stderr and "hf_secret" not in pushed.stderr

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    options = {"model_name_or_path": model, "push_to_hub": "true", "hub_model_id": "me/model", "max_steps": 2}
    with pytest.raises(OSError, match="offline"):
        stage3_ratings.main(task.arguments(tmp_path / "run", **options))
    assert not list((tmp_path / "run").glob("*.safetensors"))
    monkeypatch.setattr("xacle.publish.trainer_mixin.create_repo", lambda *args: "me/model")
    options = {**options, "hub_strategy": "every_save", "save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
    options |= {"load_best_model_at_end": "false"}
    with caplog.at_level("WARNING"), pytest.raises(OSError, match=r"The model is in '.*': publish it with `xacle push`"):
        stage3_ratings.main(task.arguments(tmp_path / "again", **options))
    assert (tmp_path / "again" / "model.safetensors").is_file()
    assert prepare(tmp_path / "again", "me/model").files
