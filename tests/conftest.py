"""Shared fixtures: tiny models with random weights for mechanics, golden data for numerics."""

import csv
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Before transformers is imported: no test connects to the Hub, and remote code of test models goes to a folder of this run.
os.environ["HF_HUB_OFFLINE"] = "1"
MODULES = tempfile.TemporaryDirectory(prefix="xacle-tests-")
os.environ["HF_MODULES_CACHE"] = MODULES.name

import numpy as np
import pytest
import soundfile as sf
import torch
from hub_server import TOKEN

from xacle.conversion.tmu import convert_tmu
from xacle.demo.tiny_models import CAPTIONS, make_sound, save_tiny_scorer, tiny_config, tiny_processor
from xacle.modeling_xacle import XacleForAlignmentScoring

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests/golden"
SHARED = ROOT.parent / "shared"

# The golden numbers come from a CPU with AVX2 whose MKL takes its portable code path. Other paths round differently, which
# shows in the log of nearly empty mel bins (pure tones) and nowhere else; these settings make any x86 CPU round alike.
REFERENCE_ARITHMETIC = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE"}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The project's larger golden data and real sounds, where they are available."""
    if not (SHARED / "golden").is_dir():
        pytest.skip(f"the larger golden data and real sounds are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="session")
def processor():
    return tiny_processor()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A tiny scorer as a user finds it on disk."""
    return save_tiny_scorer(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def old_folder(tiny_folder, tmp_path_factory) -> Path:
    """The same scorer, saved before its feature extractor had the method `average_windows`."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("old") / "model")
    code = folder / "processing_xacle.py"
    text, removed = re.subn(r"    def average_windows.*?\n(?=    def )", "", code.read_text(), flags=re.DOTALL)
    assert removed == 1
    code.write_text(text)
    return folder


@pytest.fixture(scope="session")
def released_folder(tmp_path_factory) -> Path:
    """The tiny checkpoint in the authors' format, converted."""
    return convert_tmu(GOLDEN / "tmu", tmp_path_factory.mktemp("released") / "model")


@pytest.fixture
def make_scorer(processor):
    """Builds a tiny scorer from a seed, with fields of the configuration overridden."""

    def make(seed: int = 0, model_class=XacleForAlignmentScoring, **fields):
        torch.manual_seed(seed)
        return model_class(tiny_config(processor, **fields))

    return make


@pytest.fixture(scope="session")
def sounds():
    """Four generated sounds of different lengths, with a caption each: `[(waveform, caption), ...]`."""
    seconds = {"siren": 10.0, "rain": 3.0, "clock": 7.3, "engine": 0.4}
    return [(make_sound(name, seconds[name]), caption) for name, caption in CAPTIONS.items()]


@pytest.fixture
def transformers_log(caplog, monkeypatch):
    """The log of transformers, which pytest does not capture by default."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return caplog


@pytest.fixture
def run_python(tmp_path):
    """Runs code in a new process where this package cannot be imported, and returns what it prints."""

    def run(code: str, *args: str, env: dict[str, str] | None = None, package: bool = False) -> str:
        block = "" if package else "import sys; sys.modules['xacle'] = None\n"
        result = subprocess.run(
            [sys.executable, "-c", block + code, *map(str, args)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "hf_modules"), **(env or {})},
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    return run


@dataclass
class Hub:
    """A Hub of the test run's own, see hub_server.py."""

    address: str
    folder: Path

    def env(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """What a process' environment needs to use it: `home` holds what it downloads."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN": token or "",
        }


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    command = [sys.executable, str(ROOT / "tests/hub_server.py"), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield Hub(server.stdout.readline().strip(), folder)
        finally:
            server.terminate()


@dataclass
class TrainingTask:
    """A small learnable task on disk: clips of four kinds of sound, rated high with their caption and low with another."""

    folder: Path

    def arguments(self, output_dir, table="ratings", **options) -> list[str]:
        """Arguments of a training script: short, on the tiny model, with the task's tables and its cache."""
        settings = {
            "model_name_or_path": self.folder / "model",
            "train_file": self.folder / f"{table}.csv",
            "validation_file": self.folder / "validation.csv",
            "audio_dir": self.folder / "wav",
            "validation_audio_dir": self.folder / "wav",
            "feature_cache": self.folder / "feature_cache",
            "feature_cache_dtype": "float32",
            "output_dir": output_dir,
            "per_device_train_batch_size": 8,
            "learning_rate": 3e-3,
            "num_train_epochs": 2,
            "logging_steps": 1,
            "disable_tqdm": "true",
            "use_cpu": "true",
            **options,
        }
        return [part for name, value in settings.items() if value is not None for part in (f"--{name}", str(value))]


@pytest.fixture(scope="session")
def task(tmp_path_factory) -> TrainingTask:
    folder = tmp_path_factory.mktemp("task")
    save_tiny_scorer(folder / "model")
    (folder / "wav").mkdir()
    names, rng, rows = list(CAPTIONS), np.random.default_rng(0), {"train": [], "validation": []}
    for index in range(24):
        kind, other = names[index % 4], names[(index + 1 + index // 4 % 3) % 4]
        sound = rng.uniform(0.3, 1.0) * make_sound(kind, 2.0) + 0.02 * rng.standard_normal(32000).astype(np.float32)
        sf.write(folder / "wav" / f"{index}.wav", sound, 16000)
        role = "train" if index < 16 else "validation"
        rows[role] += [(f"{index}.wav", CAPTIONS[kind], 9 - index % 2), (f"{index}.wav", CAPTIONS[other], 1 + index % 3)]
    tables = {
        "ratings": ("average_score", rows["train"]),
        "validation": ("average_score", rows["validation"]),
        "pseudo_labels": ("clap_score", [(name, text, (score - 5) / 5) for name, text, score in rows["train"]]),
    }
    for table, (column, table_rows) in tables.items():
        with (folder / f"{table}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("wav_file_name", "text", column), *table_rows])
    for role in rows:
        with (folder / f"{role}_captions.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("wav_file_name", "text"), *[row[:2] for row in rows[role] if row[2] > 5]])
    return TrainingTask(folder)
