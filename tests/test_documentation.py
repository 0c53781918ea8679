"""Every command and option in the docs exists, and so do the arguments of each command."""

import dataclasses
import re
import shlex
from pathlib import Path
from string import Template

import pytest
import typer
from test_house import PAGES

from xacle.cli import app
from xacle.train import stage1_captioning, stage2_pseudo_labels, stage3_ratings
from xacle.train.arguments import (
    CONFIGS,
    DataArguments,
    ListenerArguments,
    ModelArguments,
    RankingArguments,
    TrainingArguments,
    parse_arguments,
)
from xacle.train.teacher.human_clap import TeacherArguments

ROOT = Path(__file__).parents[1]
RANKING = (ModelArguments, DataArguments, RankingArguments)
SCRIPTS = {
    "captioning": ("captioning.yaml", (ModelArguments, DataArguments, stage1_captioning.CaptioningArguments)),
    "pseudo-labels": ("pseudo_labels.yaml", RANKING),
    "ratings": ("ratings.yaml", (*RANKING, ListenerArguments)),
    "teacher": ("teacher.yaml", (TeacherArguments, DataArguments, ListenerArguments)),
}
GUIDES = [page for page in PAGES if not page.startswith("benchmarks")]  # RESULTS.md is written by the benchmarks
MODULES = {stage1_captioning: "captioning", stage2_pseudo_labels: "pseudo-labels", stage3_ratings: "ratings"}


def commands():
    """Commands in code blocks and code spans of the docs and of the commands' help, with shell variables filled in."""
    for file in (*GUIDES, "cli.py"):
        text = (ROOT / file).read_text()
        blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ")
        variables = {}
        for name, value in re.findall(r'^(\w+)="(.*)"$', blocks, flags=re.MULTILINE):
            variables[name] = Template(value).substitute(variables)
        spans = re.findall(r"`((?:xacle|torchrun|accelerate) [^`]+ [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for line in [*blocks.splitlines(), *spans]:
            if re.match(r"(xacle|torchrun|accelerate) ", line) and " ..." not in line.split("-m xacle")[0]:
                yield Template(line.split("  #")[0].replace(" ...", "")).substitute(variables)


COMMANDS = sorted(set(commands()))


def test_the_docs_have_commands_for_every_row_of_the_papers_table():
    text = "\n".join(COMMANDS)
    for output in (
        "runs/stage1",
        "runs/stage12",
        "runs/stage123",
        "runs/stage3",
        "runs/stage2",
        "runs/stage23",
        "runs/teacher",
    ):
        assert re.search(rf"--output-dir {output}( |$)", text, flags=re.MULTILINE)
    assert "xacle ensemble test123.csv test23.csv" in text and "xacle caption --model runs/stage1" in text


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_in_the_docs_exists(line):
    words = shlex.split(line)
    if "-m" in words:
        module = words[words.index("-m") + 1]
        scripts = {stage.__name__: ["train", name] for stage, name in MODULES.items()} | {"xacle.cli": []}
        words = ["xacle", *scripts[module], *words[words.index("-m") + 2 :]]
    if words[-1] == "--help":
        words.pop()
    if words[1] == "train" and len(words) > 3:
        config, kinds = SCRIPTS[words[2]]
        parse_arguments([*words[3:], "--use_cpu", "true"], CONFIGS / config, *kinds)
        return
    command, rest = typer.main.get_command(app), words[1:]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    if rest:
        command.make_context(line, rest)


def options(command) -> set[str]:
    """All options of a command and of the commands below it."""
    own = {name for parameter in command.params for name in parameter.opts}
    return own.union(*(options(child) for child in getattr(command, "commands", {}).values()))


@pytest.mark.parametrize("page", GUIDES)
def test_options_in_the_sentences_exist_and_have_hyphens(page):
    kinds = {TrainingArguments, *(kind for _, kinds in SCRIPTS.values() for kind in kinds)}
    training = {f"--{field.name.replace('_', '-')}" for kind in kinds for field in dataclasses.fields(kind)}
    known = options(typer.main.get_command(app)) | training | {"--config", "--help", "--install-completion", "--version"}
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    named = {option for span in re.findall(r"`([^`\n]+)`", text) for option in re.findall(r"(?<![\w-])--[\w-]+", span)}
    assert named - known <= {"--train_file"}  # named once, to say that underscores work too


def test_hyphens_and_underscores_mean_the_same():
    settings = []
    for words in (["--eval-strategy", "steps", "--eval-steps", "7"], ["--eval_strategy", "steps", "--eval_steps", "7"]):
        training = parse_arguments([*words, "--use-cpu", "true"], CONFIGS / "ratings.yaml", *SCRIPTS["ratings"][1])[-1]
        settings.append((training.eval_strategy, training.eval_steps, training.save_strategy, training.save_steps))
    assert settings[0] == settings[1] == ("steps", 7, "steps", 7)
