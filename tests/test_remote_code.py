"""The model folder on its own: Auto classes and pipeline in a process where this package is not installed."""

import json
from pathlib import Path

import pytest
import soundfile as sf
from conftest import GOLDEN, ROOT
from transformers.dynamic_module_utils import get_imports, get_relative_imports

from xacle.demo.tiny_models import make_sound

MODEL_FILES = sorted(path.name for path in [*ROOT.glob("*_xacle.py"), ROOT / "modeling_beats.py"])


@pytest.mark.parametrize("name", MODEL_FILES)
def test_model_files_import_only_what_every_user_has(name):
    assert set(get_imports(ROOT / name)) <= {
        *(
            "base64",
            "contextlib",
            "dataclasses",
            "difflib",
            "functools",
            "io",
            "itertools",
            "math",
            "numbers",
            "os",
            "re",
            "typing",
        ),
        *("huggingface_hub", "numpy", "torch", "transformers"),
    }
    assert all((ROOT / f"{module}.py").is_file() for module in get_relative_imports(ROOT / name))


def test_the_authors_scores_from_the_converted_folder(released_folder, run_python):
    code = """
import importlib.util, sys, torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoProcessor
try:
    importlib.util.find_spec("xacle")
except ValueError:
    pass  # blocked
folder, golden = sys.argv[1], load_file(sys.argv[2])
import json
texts = json.load(open(sys.argv[3]))["texts"]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
for auto in (AutoModel, AutoModelForSequenceClassification):
    model = auto.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__name__ == "XacleForAlignmentScoring" and not model.training
    ids = processor(text=texts)["input_ids"]
    with torch.no_grad():
        scores = torch.stack([model(ids, audio_states=clip[None]).logits.squeeze(-1) for clip in golden["pooled"]])
    print((scores - golden["cross_scores"]).abs().max().item())
assert not any(name == "xacle" or name.startswith("xacle.") for name, module in sys.modules.items() if module)
"""
    inputs = GOLDEN / "tmu/inputs.json"
    differences = run_python(code, released_folder, GOLDEN / "golden.safetensors", inputs).split()
    assert len(differences) == 2
    assert all(float(difference) < 1e-5 for difference in differences)


def test_a_fine_tuned_copy_is_complete_again(tiny_folder, tmp_path, run_python):
    """What was loaded as remote code saves all of its code: a fine-tuned model needs no original."""
    code = """
import sys
from transformers import AutoModel, AutoProcessor, AutoModelForMultimodalLM
folder, copy = sys.argv[1:]
AutoModel.from_pretrained(folder, trust_remote_code=True).save_pretrained(copy)
AutoProcessor.from_pretrained(folder, trust_remote_code=True).save_pretrained(copy)
captioner = AutoModelForMultimodalLM.from_pretrained(copy, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(copy, trust_remote_code=True)
tokens = captioner.generate(**processor(audio=sys.argv[1] + "/../sound.wav"), max_new_tokens=3)
print(tokens.shape[1])
"""
    sf.write(tiny_folder.parent / "sound.wav", make_sound("rain", 1.0), 16000)
    assert int(run_python(code, tiny_folder, tmp_path / "copy")) <= 105
    assert {path.name for path in (tmp_path / "copy").glob("*.py")} == {path.name for path in tiny_folder.glob("*.py")}


def test_the_pipeline(tiny_folder, tmp_path, run_python):
    sf.write(tmp_path / "short.wav", make_sound("rain", 3.0), 16000)
    sf.write(tmp_path / "long.flac", make_sound("siren", 25.0), 16000)
    code = """
import json, sys
import numpy as np, soundfile as sf, torch
from transformers import AutoModel, AutoProcessor, pipeline
folder, short, long = sys.argv[1:]
scorer = pipeline(model=folder, trust_remote_code=True)
assert scorer.task == "audio-classification" and scorer([]) == []
pair = {"audio": short, "text": "Rain falls"}
one = scorer(pair)
array = {"audio": sf.read(short)[0], "sampling_rate": 16000, "text": "Rain falls"}
listed = scorer([pair, {"audio": long, "text": "A siren"}, array])
batched = scorer([pair, {"audio": long, "text": "A siren rises and falls"}, pair], batch_size=2)
alone = scorer({"audio": long, "text": "A siren rises and falls"})
first = scorer({"audio": long, "text": "A siren"}, window="first")
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    direct = model(**processor(text="Rain falls", audio=short)).scores.item()
    direct_first = model(**processor(text="A siren", audio=sf.read(long)[0][:160000], sampling_rate=16000)).scores.item()
errors = []
for bad in ({"audio": short}, {"audio": short, "text": " "}, short, {"audio": "missing.wav", "text": "a"}):
    try:
        scorer(bad)
    except (ValueError, FileNotFoundError) as error:
        errors.append(str(error))
print(json.dumps([one, listed, batched, alone, first, direct, direct_first, errors]))
"""
    output = run_python(code, tiny_folder, tmp_path / "short.wav", tmp_path / "long.flac")
    one, listed, batched, alone, first, direct, direct_first, errors = json.loads(output.splitlines()[-1])
    assert one["score"] == pytest.approx(direct, abs=1e-5)
    assert listed[0] == one
    assert listed[2]["score"] == pytest.approx(one["score"], abs=1e-5)
    windows = alone["windows"]
    assert [(window["start"], window["end"]) for window in windows] == [(0, 10), (10, 20), (20, 25)]
    mean = sum(window["score"] * weight for window, weight in zip(windows, (0.4, 0.4, 0.2), strict=True))
    assert alone["score"] == pytest.approx(mean, abs=1e-5)
    assert batched[1]["score"] == pytest.approx(alone["score"], abs=1e-5)
    assert batched[0]["score"] == batched[2]["score"] == pytest.approx(one["score"], abs=1e-5)
    assert first["score"] == pytest.approx(direct_first, abs=1e-5)
    assert [error.split(",")[0][:32] for error in errors] == [
        "each input must be a dict with '",
        "'text' must be a caption",
        "each input must be a dict with '",
        "no audio file at 'missing.wav'",
    ]


def test_the_package_is_what_is_installed():
    import xacle.modeling_xacle

    assert Path(xacle.modeling_xacle.__file__).parent == ROOT
