"""The real sizes, with random weights: the paper's model scores a clip, the release converts, in bounded memory."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config

from xacle.configuration_xacle import QWEN_2_5_0_5B_INSTRUCT

SHAPES = {
    name: [int(size) for size in json.loads(shape)]
    for name, shape, *_ in (
        line.split("\t") for line in (GOLDEN / "tmu_full_keys.txt").read_text().splitlines() if line[0] != "#"
    )
}
SHARED_TABLES = re.compile(r"layers\.[1-9]\d*\.self_attn\.relative_attention_bias")

MEASURE = """
from pathlib import Path
def peak_gb():  # of this process alone: getrusage also counts its parent's
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 2**20
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")


@pytest.fixture(scope="module")
def qwen_stand_in(tmp_path_factory):
    """Qwen2.5-0.5B's config and a tokenizer of its size: 151,643 entries and 22 added tokens."""
    folder = tmp_path_factory.mktemp("qwen")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = alphabet + [f"word{number}" for number in range(151643 - len(alphabet))]
    backend = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|added_{n}|>" for n in range(19))])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    assert len(tokenizer) == 151665
    tokenizer.save_pretrained(folder)
    Qwen2Config(**QWEN_2_5_0_5B_INSTRUCT).save_pretrained(folder)
    return folder


def test_the_release_converts_at_full_size_in_bounded_memory(qwen_stand_in, tmp_path_factory, run_python):
    release = tmp_path_factory.mktemp("release")
    (release / "config.json").write_text(json.dumps({"llm_model_name": str(qwen_stand_in), "num_audio_tokens": 100}))
    table = torch.randn(320, 12) * 0.02
    tensors = {
        name: table if "relative_attention_bias" in name else torch.empty(shape).normal_(std=0.02)
        for name, shape in SHAPES.items()
    }
    torch.save(tensors, release / "model.pt")
    del tensors
    code = f"""{MEASURE}
import sys, json
from xacle.conversion.tmu import convert_tmu
convert_tmu(sys.argv[1], sys.argv[2])
peak = peak_gb()
from xacle.modeling_xacle import XacleForAlignmentScoring
model = XacleForAlignmentScoring.from_pretrained(sys.argv[2])
state = {{name: list(tensor.shape) for name, tensor in model.state_dict().items()}}
print(json.dumps([peak, sum(p.numel() for p in model.parameters()), state]))
"""
    peak, parameters, state = json.loads(run_python(code, release, release / "converted", package=True).splitlines()[-1])
    assert peak < 8
    assert round(parameters / 1e6, 1) == 595.0
    # The same shapes, name by name, but for the shared table's copies and the placeholder's row.
    expected = sorted(shape for name, shape in SHAPES.items() if not SHARED_TABLES.search(name))
    expected[expected.index([151668, 896])] = [151669, 896]
    assert sorted(state.values()) == sorted(expected)
    assert len(state) == 558 - 11
    (release / "model.pt").unlink()


def test_the_papers_model_is_built_saved_loaded_and_scores(qwen_stand_in, tmp_path, run_python):
    code = f"""{MEASURE}
import sys, json, math, torch
import numpy as np
from pathlib import Path
from transformers import AutoTokenizer
from xacle.configuration_xacle import XacleConfig
from xacle.modeling_xacle import XacleForAlignmentScoring
from xacle.processing_xacle import XacleFeatureExtractor, XacleProcessor
from xacle.scoring.scorer import Scorer
qwen, folder = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(qwen)
tokens = ["<|AUDIO_START|>", "<|AUDIO_END|>", "<|SCORE|>", "<|AUDIO|>"]
tokenizer.add_special_tokens({{"additional_special_tokens": tokens}}, replace_extra_special_tokens=False)
processor = XacleProcessor(XacleFeatureExtractor(), tokenizer)
config = XacleConfig()
for name in config.special_token_names:
    assert getattr(config, name) == getattr(processor, name)
torch.manual_seed(0)
XacleForAlignmentScoring(config).save_pretrained(folder)
processor.save_pretrained(folder)
scorer = Scorer.from_pretrained(folder, device="cpu")
clip = np.random.default_rng(0).standard_normal(160000).astype(np.float32) / 10
one, two = scorer.score([clip, clip], ["word1 word22", "word333"])
assert math.isfinite(one) and math.isfinite(two) and one != two
(alone,) = scorer.score([clip], ["word1 word22"])
print(json.dumps([peak_gb(), abs(float(alone) - float(one))]))
"""
    peak, difference = json.loads(run_python(code, qwen_stand_in, tmp_path / "model", package=True).splitlines()[-1])
    assert peak < 24
    assert difference < 1e-4
