"""Where weights come from and under which license: recorded where they enter, carried through training by the configuration.

`config.weight_sources` is a list of `{"role", "name", "license"}`: what a model's weights were converted from, put together
from, trained on from, or taught by. The license is an identifier of the Hub's, or `None` where it is not recorded. How a run
made them stands in `run.json` beside them, with their checksum.
"""

import hashlib
import json
from pathlib import Path

from huggingface_hub import metadata_load
from transformers.utils import cached_file

from xacle.core.clips import file_digest

TMU = "Atotti/xacle-tmu-2026"  # the weights that the paper's authors published
TMU_LICENSE = "cc-by-nc-4.0"
NOTICE_FILE = "LICENSE_NOTICE.md"  # beside weights: what their license asks for
NTT_EVALUATION = "ntt-evaluation"  # M2D's license agreement, see publish/license.py; not one of the Hub's
RUN_RECORD = "run.json"  # what a training run leaves beside its weights


def weight_source(role: str, name: str | Path, license: str | None) -> dict:
    """
    Args:
        role: What the weights were used as: "scorer", "audio encoder", "language model", "teacher".
        name: Hub id, or what it is called; folders are named by their last part.
        license: Identifier of the Hub's, or `None` if it is not known.
    """
    return {"role": role, "name": Path(name).name if Path(name).exists() else str(name), "license": license}


def sources_of(config: dict, role: str, name: str | Path) -> list[dict]:
    """The sources of a model that becomes part of another: what its configuration records, or else the model itself.

    Args:
        config: Its configuration's fields.
        role: What it is used as, if it records nothing.
        name: The folder or Hub id it was loaded from, whose card has the license.
    """
    if config.get("weight_sources"):
        return [dict(source) for source in config["weight_sources"]]
    license = NTT_EVALUATION if config["model_type"] == "m2d_clap" else license_on_card(name)
    return [weight_source(role, name, license)]


def merge_sources(*parts: list[dict]) -> list[dict]:
    """Lists of sources, one after the other; each source once."""
    merged = []
    for part in parts:
        merged += [source for source in part if source not in merged]
    return merged


def write_teacher_sources(table: Path, sources: list[dict]) -> None:
    """Record beside a table of pseudo-labels, in `<table>.teacher.json`, what its labels derive from."""
    _teacher_file(table).write_text(json.dumps(sources, indent=2) + "\n", encoding="utf-8")


def teacher_sources(table: str | Path) -> list[dict]:
    """What the labels of a table of pseudo-labels derive from, as [`write_teacher_sources`] recorded it."""
    file = _teacher_file(table)
    if not file.is_file():
        return [weight_source("teacher", f"the unrecorded teacher of {Path(table).name}", None)]
    return [{**source, "role": "teacher"} for source in json.loads(file.read_text(encoding="utf-8"))]


def _teacher_file(table: str | Path) -> Path:
    return Path(f"{table}.teacher.json")


def license_on_card(name: str | Path) -> str | None:
    """The license in the metadata of a folder's or repository's README.md, `None` if it does not say."""
    unreachable = ("missing_entries", "gated_repo", "connection_errors")
    try:
        card = cached_file(str(name), "README.md", **{f"_raise_exceptions_for_{what}": False for what in unreachable})
    except OSError:
        return None
    metadata = {} if card is None else metadata_load(card) or {}
    license = metadata.get("license_name") if metadata.get("license") == "other" else metadata.get("license")
    return license if isinstance(license, str) and license != "unknown" else None


def weights_checksum(folder: str | Path) -> str | None:
    """`sha256:...` of a folder's safetensors, in the order of their names; `None` if it has none."""
    digest, files = hashlib.sha256(), sorted(Path(folder).glob("*.safetensors"))
    for file in files:
        file_digest(file, digest)
    return f"sha256:{digest.hexdigest()}" if files else None


def record_of(folder: str | Path) -> dict:
    """The record of the run that left its model in `folder`; empty if there is none, or if the weights are no longer its.

    Raises:
        ValueError: if there is one that cannot be read.
    """
    record = read_json(Path(folder) / RUN_RECORD)
    return record if record and record.get("weights") == weights_checksum(folder) else {}


def read_json(file: Path) -> dict:
    """The object in a JSON file; empty if there is no such file. `ValueError`, naming it, if it holds none."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{file}' is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{file}' is damaged: it holds no JSON object")
    return content
