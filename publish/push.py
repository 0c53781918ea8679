"""A model folder -> a repository on the Hub: weights, code, processor, handler and card, in one commit.

The folder itself is left as it is.
"""

import fnmatch
import re
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import httpx, validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_imports
from yaml import YAMLError

from xacle.core.provenance import NOTICE_FILE, read_json, sources_of
from xacle.publish.card import Example, kind_of, render_card
from xacle.publish.license import Terms, terms_of

ROOT = Path(__file__).parents[1]
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
SETTINGS = (
    *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", NOTICE_FILE),
)
MODEL_TYPES = ("xacle", "clap", "m2d_clap")
# What an earlier model may have left in a repository, and loading this one would read.
FOREIGN = ("adapter_*", "pytorch_model*", "handler.py", "requirements.txt")
HANDLER_REQUIREMENTS = "transformers>=5.23\nsoundfile>=0.13\nsoxr>=0.5\n"  # what handler.py needs beside the endpoint's own


@dataclass
class Publication:
    """What would be uploaded.

    Args:
        files: Path in the repository -> the file on disk, or its content.
        left_out: Names in the folder that are not uploaded.
        card: The text of README.md.
    """

    repo_id: str
    files: dict[str, Path | bytes]
    left_out: list[str]
    card: str
    terms: Terms

    def sizes(self) -> dict[str, int]:
        """Path in the repository -> bytes."""
        return {
            path: len(content) if isinstance(content, bytes) else content.stat().st_size
            for path, content in sorted(self.files.items())
        }


def prepare(
    folder: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    accept_license: bool = False,
    datasets: Sequence[str] = (),
    examples: Sequence[tuple[str, str]] = (),
    card: Path | None = None,
    revision: str | None = None,
) -> Publication:
    """Everything that publishing a folder takes, without any network.

    Args:
        folder: A model folder as training and converting leave it, or a checkpoint's.
        repo_id: `owner/name` of the repository.
        license, accept_license: See [`terms_of`].
        datasets: Hub ids of data it was trained on, for the card.
        examples: Sounds and captions to score now and show on the card; the sounds are uploaded.
        card: A README.md of your own instead of the rendered one; its `license` must be the one that holds.
        revision: The branch it goes to, for addresses on the card; `main` if `None`.

    Raises:
        FileNotFoundError, ValueError: if it is no complete model folder, or may not be published like this.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    for dataset in datasets:
        check_repo_id(dataset)
    config = _read_config(folder)
    files: dict[str, Path | bytes] = {file.name: file for file in _weights(folder)}
    files |= {file.name: file for name in SETTINGS if (file := folder / name).is_file()}
    files |= {name: folder / name for name in sorted(_needed_code(folder, config))}
    sources = sources_of(config, "scorer" if config["model_type"] == "xacle" else "teacher", folder)
    terms = terms_of(sources, license, accept_license)
    scored = _score_examples(folder, examples)
    for example in scored:
        if files.setdefault(example.path, example.content) != example.content:
            raise ValueError(f"two examples are called {example.path}: rename one")
    if kind_of(config) == "scorer":
        files["handler.py"] = ROOT / "handler.py"
        files["requirements.txt"] = HANDLER_REQUIREMENTS.encode()
    if terms.license == "other" and NOTICE_FILE not in files:
        files[NOTICE_FILE] = ("# License of the weights\n\n" + "\n\n".join(terms.notices) + "\n").encode()
    if card is None:
        address = f"{constants.ENDPOINT}/{repo_id}/resolve/{revision or 'main'}"
        text = str(
            render_card(folder, config, repo_id, sources, terms, datasets=list(datasets), examples=scored, address=address)
        )
    else:
        text = _own_card(card, terms)
    files["README.md"] = text.encode()
    uploaded = {file.name for file in files.values() if isinstance(file, Path)} | set(files)
    left_out = sorted(item.name + "/" * item.is_dir() for item in folder.iterdir() if item.name not in uploaded)
    return Publication(repo_id, files, left_out, text, terms)


def upload(
    publication: Publication,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Create the repository (and the branch `revision`) if need be, and commit to it.

    What an earlier model left there, and would be loaded beside or instead of this one's, is deleted in the same commit.

    Raises:
        ValueError: without a token.
        OSError: with the Hub's answer, if it refuses.
    """
    repo_id = create_repo(publication.repo_id, private, token)
    api = HfApi(token=token)
    with _plain_errors(repo_id):
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        present = api.list_repo_files(repo_id, revision=revision)
        read_by_loading = (*WEIGHTS, *SETTINGS, *FOREIGN)
        stale = [name for name in present if _matches(name, read_by_loading) and name not in publication.files]
        deleted = [CommitOperationDelete(path_in_repo=name) for name in stale]
        added = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in publication.files.items()]
        message = commit_message or "Upload an xacle model"
        return api.create_commit(repo_id, [*deleted, *added], commit_message=message, revision=revision)


def create_repo(repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Create a repository if need be and return its full name. Raises as [`upload`] does."""
    check_token(token)
    api = HfApi(token=token)
    with _plain_errors(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise OSError(f"'{repo_id}' is there already, and public: make it private in its settings, or choose another name")
    return repo_id


@contextmanager
def _plain_errors(repo_id: str):
    """The Hub's refusals, and no connection to it, as `OSError`s of one line."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        hint = {401: "is the token valid? Log in with `hf auth login`", 403: "may this token write there?"}.get(status)
        reason = error.server_message or str(error).splitlines()[0]
        raise OSError(f"the Hub refuses '{repo_id}': {reason}" + (f" ({hint})" if hint else "")) from error
    except httpx.HTTPError as error:
        raise OSError(f"the Hub cannot be reached at {constants.ENDPOINT}: {error}") from error


def check_repo_id(repo_id: str) -> None:
    """Raise `ValueError` if the Hub could not have a repository of this name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"'{repo_id}' is no name on the Hub, which looks like owner/name: {error}") from error


def check_token(token: str | None = None) -> None:
    """Raise `ValueError` if there is no token to write to the Hub with."""
    if not (token or get_token()):
        raise ValueError("no token for the Hub: log in with `hf auth login`, or set HF_TOKEN to one that may write")


# --- What a folder holds -------------------------------------------------------------------------------------------------


def _read_config(folder: Path) -> dict:
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder at '{folder}'")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"'{folder}' holds a LoRA adapter without its base; train with --lora-output merged to publish it")
    needed = ["config.json", "tokenizer_config.json", "tokenizer.json"]
    if not (folder / "preprocessor_config.json").is_file():  # where older CLAPs have it
        needed.append("processor_config.json")
    if missing := [name for name in needed if not (folder / name).is_file()]:
        raise ValueError(f"'{folder}' is no complete model folder: it has no {', '.join(missing)}")
    config = read_json(folder / "config.json")
    if config.get("model_type") not in MODEL_TYPES:
        raise ValueError(f"'{folder}' holds a model of type {config.get('model_type')!r}, not one of {', '.join(MODEL_TYPES)}")
    return config


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _weights(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        if not (folder / "model.safetensors").is_file():
            raise ValueError(f"'{folder}' has no weights: no model.safetensors (pickled weights are not published)")
        return [_whole(folder / "model.safetensors")]
    shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise ValueError(f"'{folder}' lacks {', '.join(missing)}, which its {index.name} names")
    return [index, *(_whole(folder / name) for name in shards)]


def _whole(file: Path) -> Path:
    try:
        with safe_open(file, "pt"):
            return file
    except SafetensorError as error:
        raise ValueError(f"'{file}' is damaged ({error}): save or copy it again") from error


def _needed_code(folder: Path, config: dict) -> set[str]:
    """The modules that Auto classes and pipelines import from the repository, and what those import from it."""
    references = [*(config.get("auto_map") or {}).values()]
    references += [pipeline["impl"] for pipeline in (config.get("custom_pipelines") or {}).values()]
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            references += _auto_maps(read_json(folder / file))
    if foreign := [reference for reference in references if "--" in str(reference)]:
        raise ValueError(f"'{folder}' takes its code from another repository ({foreign[0]}): save the model with its own code")
    needed, todo = set(), {f"{reference.split('.')[0]}.py" for reference in references}
    while todo:
        name = todo.pop()
        if not (folder / name).is_file():
            raise ValueError(
                f"'{folder}' lacks {name}, which loading it from the Hub needs: save model and processor with save_pretrained"
            )
        needed.add(name)
        todo |= {f"{module}.py" for module in get_relative_imports(folder / name)} - needed
    return needed


def _auto_maps(settings: dict) -> list[str]:
    """The references of a processor's `auto_map`s, those of its parts included."""
    found = []
    for name, value in settings.items():
        if name == "auto_map":
            for reference in value.values():
                found += [part for part in ([reference] if isinstance(reference, str) else reference) if part]
        elif isinstance(value, dict):
            found += _auto_maps(value)
    return found


def _score_examples(folder: Path, examples: Sequence[tuple[str, str]]) -> list[Example]:
    if not examples:
        return []
    from xacle.scoring.scorer import Scorer

    sounds, texts = zip(*examples, strict=True)
    if missing := [sound for sound in sounds if not Path(sound).is_file()]:
        raise FileNotFoundError(f"no sound for an example at '{missing[0]}'")
    scores = Scorer.from_pretrained(folder).score(list(sounds), list(texts))
    return [
        Example("examples/" + re.sub(r"[^\w.-]", "_", Path(sound).name), text, float(score), Path(sound).read_bytes())
        for sound, text, score in zip(sounds, texts, scores, strict=True)
    ]


def _own_card(file: Path, terms: Terms) -> str:
    from huggingface_hub import ModelCard

    text = Path(file).read_text(encoding="utf-8")
    try:
        license = ModelCard(text).data.license
    except (YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the metadata at the head of '{file}' cannot be read: {reason}") from error
    if license != terms.license:
        raise ValueError(f"'{file}' has `license: {license}`, but the model is published under {terms.license}: change either")
    if missing := [notice for notice in terms.notices if notice not in text]:
        raise ValueError(f"'{file}' must say the following:\n" + "\n".join(f"  - {notice}" for notice in missing))
    return text
