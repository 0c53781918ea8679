"""The structure: which folder may import which, what travels with a model, and that the docs name only what exists."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from conftest import ROOT
from transformers.dynamic_module_utils import get_imports

from xacle.cli import app

# From top to bottom; names on one line stand side by side. A file imports from its own line and from those below it.
LEVELS = [
    ["cli.py", "handler.py", "space"],
    ["benchmarks"],
    ["demo"],
    ["train"],
    ["publish"],
    ["conversion"],
    ["metrics"],
    ["scoring"],
    ["clap"],
    ["soundscapes"],
    ["core"],
    [  # the files that travel with a saved model
        "pipeline_xacle.py",
        "modeling_xacle.py",
        "modeling_beats.py",
        "processing_xacle.py",
        "audio_xacle.py",
        "configuration_xacle.py",
    ],
]
HUB_FILES = LEVELS[-1]
LEVEL_OF = {name.removesuffix(".py"): level for level, names in enumerate(LEVELS) for name in names}
NOT_INSTALLED = {"benchmarks", "docs", "metrics", "tests"}
SAVED_MODELS_NEED = {"huggingface_hub", "numpy", "torch", "transformers"}  # soundfile and soxr: asked for when they are missing


def tracked(*patterns: str) -> list[Path]:
    """The repository's own files, relative to its root; not what was made in it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("the repository's files are listed by git, and this is no clone")
    return [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def place(path: Path) -> str:
    """The folder or file of LEVELS that a file belongs to."""
    return path.parts[0].removesuffix(".py")


def own_imports(path: Path) -> list[tuple[int, str]]:
    """`(line, module)` of each import of the project's own modules, as dotted paths from the root."""
    found = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parent.parts[: len(path.parent.parts) - node.level + 1]
            base = ".".join([*folder, *([node.module] if node.module else [])])
            found += [(node.lineno, base or alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "xacle":
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.module))
    names = [(line, name.removeprefix("xacle.")) for line, name in found]
    return list(dict.fromkeys((line, name) for line, name in names if name.partition(".")[0] in LEVEL_OF))


# --- Imports -------------------------------------------------------------------------------------------------------------


def test_imports_only_point_down():
    upward = [
        f"{path}:{line} imports {module}"
        for path in tracked("*.py")
        if place(path) in LEVEL_OF
        for line, module in own_imports(path)
        if LEVEL_OF[module.partition(".")[0]] < LEVEL_OF[place(path)]
    ]
    assert upward == []


def test_every_file_with_code_has_a_level():
    assert {place(path) for path in tracked("*.py")} - {"docs", "tests"} == set(LEVEL_OF)


@pytest.mark.parametrize("name", HUB_FILES)
def test_a_file_that_travels_with_a_model_imports_siblings_only(name):
    siblings = {Path(file).stem for file in HUB_FILES}
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:  # transformers copies what `from .x import y` names
            assert node.level == 1 and node.module in siblings, f"{name}:{node.lineno}"
    assert "xacle" not in get_imports(ROOT / name)


@pytest.mark.parametrize("name", HUB_FILES)
def test_a_file_that_travels_with_a_model_needs_no_optional_dependency(name):
    """transformers refuses to load remote code when a module is missing, except inside `if is_..._available():`."""
    assert set(get_imports(ROOT / name)) - sys.stdlib_module_names <= SAVED_MODELS_NEED


# --- Packaging -----------------------------------------------------------------------------------------------------------


def test_the_installed_packages_are_the_folders_with_files_to_install():
    packages = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    files = [path for path in tracked("*.py", "*.yaml", "*.mp3") if path.parts[0] in LEVEL_OF or len(path.parts) == 1]
    folders = {path.parent for path in files if path.parts[0] not in NOT_INSTALLED}
    assert packages == {".".join(["xacle", *folder.parts]) for folder in folders}


def test_the_version_stands_in_one_place():
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version("xacle") == stated
    files = tracked("*.py", "*.cff", "*.toml", "*.md", "*.yml", "Makefile")
    mentions = [path for path in files if re.search(rf"(?<![\w.]){re.escape(stated)}(?![\w.]*\d)", (ROOT / path).read_text())]
    assert {str(path) for path in mentions} <= {"pyproject.toml", "CHANGELOG.md"}


def test_ruff_is_the_same_everywhere():
    pinned = re.search(r"^ruff==(.*)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)[1]
    assert f"rev: v{pinned}" in (ROOT / ".pre-commit-config.yaml").read_text()


# --- What the docs name --------------------------------------------------------------------------------------------------

PAGES = [
    "CONTRIBUTING.md",
    "README.md",
    "benchmarks/RESULTS.md",
    "demo/README.md",
    *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md")),
    *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("metrics/*/README.md")),
    "model_card.md",
    "space/README.md",
]
FILES = {".bin", ".csv", ".css", ".html", ".json", ".jsonl", ".md", ".mp3", ".pt", ".wav", ".yaml"}


def spans(page: str) -> list[str]:
    """The code in a page's sentences and tables."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def exists(dotted: str) -> bool:
    """Whether `xacle.a.b.C.d` is a module or something in one."""
    names = dotted.split(".")
    for end in range(len(names), 1, -1):
        try:
            found = importlib.import_module(".".join(names[:end]))
        except ModuleNotFoundError as error:
            if error.name and not dotted.startswith(error.name):
                raise
            continue
        for name in names[end:]:
            found = getattr(found, name, None)
        return found is not None
    return False


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_imports_exists(page):
    named = {span.partition("(")[0] for span in spans(page) if re.match(r"xacle(\.\w+)+", span)}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("xacle"):
                named |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert [name for name in sorted(named) if not exists(name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_identifier_of_a_page_occurs_in_the_code(page):
    """Names in code spans with an underscore or inner capitals: functions, classes, columns, fields, arguments."""
    sources = [path for path in tracked("*.py", "*.yaml", "*.jinja") if path.parts[0] not in ("docs", "tests")]
    words = {word for path in sources for word in re.findall(r"\w+", (ROOT / path).read_text())}
    names = [span.partition("(")[0] for span in spans(page) if re.fullmatch(r"[A-Za-z_][\w.]*(\(.*\))?=?", span)]
    parts = {part for name in names if Path(name).suffix not in FILES for part in re.findall(r"\w+", name)}
    assert sorted(part for part in parts - words if re.search(r"[a-z]_[a-z]|[a-z][A-Z]", part)) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_exists(page):
    root = typer.main.get_command(app)
    text = re.sub(r"```(?!bash).*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for first, second in re.findall(r"(?:`|^)xacle ([a-z][a-z0-9-]*)(?: ([a-z][a-z0-9-]*))?", text, flags=re.MULTILINE):
        assert first in root.commands, f"xacle {first}"
        if second and hasattr(root.commands[first], "commands"):
            assert second in root.commands[first].commands, f"xacle {first} {second}"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_python_files_of_a_page_exist(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\((?!https?:|\{\{)([^)\s]+)\)", (ROOT / page).read_text()):
        file, _, anchor = target.partition("#")
        linked = folder / file if file else ROOT / page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target
    for name in re.findall(r"\S+\.py(?= |$)", "\n".join(spans(page)), flags=re.MULTILINE):
        assert any(ROOT.glob(name)) or any(folder.glob(name)), name


def test_the_map_in_the_docs_names_every_folder_in_order():
    text = (ROOT / "docs/README.md").read_text().partition("## Where things are")[2]
    names = [f"`{name}`" if name.endswith(".py") else f"`{name}/`" for level in LEVELS for name in level]
    assert [name for name in names if name not in text] == []
    rows = [min(text.index(f"`{name}`" if name.endswith(".py") else f"`{name}/`") for name in level) for level in LEVELS]
    assert rows == sorted(rows)
