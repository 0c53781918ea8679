"""The Inference Endpoints handler, as an endpoint runs it: from the model's folder, where this package is not installed."""

import base64
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import soundfile as sf
from conftest import ROOT
from transformers.dynamic_module_utils import get_imports, get_relative_imports

from xacle.demo.tiny_models import make_sound
from xacle.scoring.scorer import Scorer

CAPTIONS = ["Rain falls", "A siren rises and falls in pitch", "A clock ticks"]
CODE = """
import importlib.util, json, sys
from pathlib import Path
folder, requests, sound = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
spec = importlib.util.spec_from_file_location("handler", sys.argv[4])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.EndpointHandler(folder)
answers = {name: handler(request) for name, request in requests.items()}
answers["body"] = handler({"inputs": sound.read_bytes(), "parameters": {"text": "Rain falls"}})
answers["no caption"] = handler({"inputs": sound.read_bytes()})
answers["not an object"] = handler("Rain falls")

jobs, score_pairs = [], handler.score_pairs
handler.score_pairs = lambda items: jobs.append(len(items)) or score_pairs(items)
handler(requests["mixed"])
answers["jobs"], handler.score_pairs = jobs, score_pairs

module.BATCH_SIZE = 2
answers["small batches"] = handler(requests["mixed"])

# An accelerator without memory for more than one clip, and for none of captions of a certain length.
def short_of_memory(items, score=handler.score_pairs):
    if len(items) > 1 or "much too long" in items[0].captions:
        raise RuntimeError("out of memory")
    return score(items)

handler.score_pairs = short_of_memory
answers["short of memory"] = handler(requests["mixed"])
answers["out of memory"] = handler(requests["too long"])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def sounds_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    sf.write(folder / "rain.wav", make_sound("rain", 3.0), 16000)
    sf.write(folder / "siren.flac", make_sound("siren", 25.0), 16000)
    return folder


@pytest.fixture(scope="module")
def url(sounds_dir):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(sounds_dir)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_it_imports_nothing_but_what_an_endpoint_has():
    assert set(get_imports(ROOT / "handler.py")) == {
        "base64",
        "binascii",
        "dataclasses",
        "numpy",
        "re",
        "torch",
        "transformers",
    }
    assert not get_relative_imports(ROOT / "handler.py")


def test_models_published_before_average_windows_have_the_same_scores(tiny_folder, old_folder, sounds_dir, run_python):
    code = """
import json, sys
sys.path.insert(0, sys.argv[1])
from handler import EndpointHandler
from pathlib import Path
request = {"inputs": {"audio": Path(sys.argv[2]).read_bytes(), "text": ["Rain falls", "A siren"]}}
handlers = [EndpointHandler(folder) for folder in sys.argv[3:]]
assert [hasattr(handler.processor.feature_extractor, "average_windows") for handler in handlers] == [True, False]
print(json.dumps([handler(request) for handler in handlers]))
"""
    output = run_python(code, ROOT, sounds_dir / "siren.flac", tiny_folder, old_folder)
    new, old = json.loads(output.splitlines()[-1])
    assert len(new["windows"]) == 3
    assert new["scores"] == pytest.approx(old["scores"], abs=1e-6) and new["windows"] == old["windows"]


def test_requests_and_answers(tiny_folder, sounds_dir, url, tmp_path, run_python):
    rain, siren = (sounds_dir / name for name in ("rain.wav", "siren.flac"))
    encoded = base64.b64encode(rain.read_bytes()).decode()
    wrapped = base64.encodebytes(rain.read_bytes()).decode()  # in lines, as some tools write it
    mixed = [
        {"audio": encoded, "text": "Rain falls"},
        {"audio": str(rain), "text": "Rain falls"},  # a file of the endpoint's own
        {"audio": f"{url}/siren.flac".replace("http", "HTTP"), "text": CAPTIONS},
        {"audio": f"{url}/missing.wav", "text": "Rain falls"},
        {"audio": "bm90IGEgc291bmQ=", "text": "Rain falls"},
        {"audio": encoded, "text": ""},
        {"audio": encoded, "text": []},
        {"audio": encoded},
        "Rain falls",
        {"audio": 3, "text": "Rain falls"},
        {"audio": f"data:audio/wav;base64,{encoded}", "text": CAPTIONS[2]},
    ]
    requests = {
        "one": {"inputs": {"audio": wrapped, "text": "Rain falls"}},
        "several": {"inputs": {"audio": encoded, "text": CAPTIONS}},
        "first window": {"inputs": {"audio": f"{url}/siren.flac", "text": "Rain falls"}, "parameters": {"window": "first"}},
        "mixed": {"inputs": mixed},
        "too long": {"inputs": [mixed[0], {"audio": encoded, "text": "much too long"}]},
        "empty": {"inputs": []},
        "no inputs": {"audio": encoded},
        "bad window": {"inputs": mixed[0], "parameters": {"window": "last"}},
    }
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    output = run_python(CODE, tiny_folder, tmp_path / "requests.json", rain, ROOT / "handler.py")
    answers = json.loads(output.splitlines()[-1])

    scorer = Scorer.from_pretrained(tiny_folder)
    of_rain = pytest.approx(scorer.score([rain] * 3, CAPTIONS), abs=1e-5)
    of_siren = pytest.approx(scorer.score([siren] * 3, CAPTIONS), abs=1e-5)
    first_score = answers["one"]["score"]
    assert [first_score, *answers["several"]["scores"][1:]] == of_rain
    assert answers["several"]["scores"] == of_rain
    assert answers["first window"] == {"score": pytest.approx(scorer.score([siren], CAPTIONS[:1], window="first")[0], abs=1e-5)}
    assert answers["body"] == {"score": pytest.approx(first_score, abs=1e-6)}

    for name in ("mixed", "small batches", "short of memory"):
        results = answers[name]
        assert results[0]["score"] == pytest.approx(first_score, abs=1e-5)
        assert results[2]["scores"] == of_siren
        spans = [(window["start"], window["end"]) for window in results[2]["windows"]]
        assert spans == [(0, 10), (10, 20), (20, 25)]
        weighted = [0.4 * window["scores"][0] for window in results[2]["windows"]]
        assert sum(weighted[:2]) + weighted[2] / 2 == pytest.approx(results[2]["scores"][0], abs=1e-5)
        assert results[10]["score"] == pytest.approx(answers["several"]["scores"][2], abs=1e-5)
        errors = {number: result["error"] for number, result in enumerate(results) if "error" in result}
        assert list(errors) == [1, 3, 4, 5, 6, 7, 8, 9]
        assert all(error["item"] == number for number, error in errors.items())
        assert "neither base64 nor a URL" in errors[1]["message"]
        assert "cannot fetch" in errors[3]["message"] and "cannot decode" in errors[4]["message"]
        assert errors[5]["message"] == errors[6]["message"] == "'text' must be a caption or a list of captions"
        assert "'audio' and 'text', got ['audio']" in errors[7]["message"] and "got str" in errors[8]["message"]
        assert "got int" in errors[9]["message"]
    assert answers["jobs"] == [3]  # what can be scored, all at once and once
    kept, lost = answers["out of memory"]
    assert kept["score"] == pytest.approx(first_score, abs=1e-5)
    assert lost == {"error": {"item": 1, "message": "it cannot be scored: out of memory"}}

    assert answers["empty"] == []
    assert answers["no inputs"]["error"]["item"] is None and answers["not an object"]["error"]["item"] is None
    assert "'window' one of mean, first" in answers["bad window"]["error"]["message"]
    assert "parameters.text" in answers["no caption"]["error"]["message"]
