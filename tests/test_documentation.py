"""Every command the guides show is one that exists, with arguments that exist."""

import re
import shlex
from pathlib import Path
from string import Template

import pytest
import typer

from xacle.cli import app
from xacle.train import stage1_captioning, stage2_pseudo_labels, stage3_ratings
from xacle.train.arguments import (
    CONFIGS,
    DataArguments,
    ListenerArguments,
    ModelArguments,
    RankingArguments,
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
MODULES = {stage1_captioning: "captioning", stage2_pseudo_labels: "pseudo-labels", stage3_ratings: "ratings"}


def shown_commands():
    """Commands in code blocks and code spans of the guides and of the commands' help, with shell variables filled in."""
    for file in ("README.md", "train/README.md", "demo/README.md", "docs/publish.md", "cli.py"):
        text = (ROOT / file).read_text()
        blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ")
        variables = {}
        for name, value in re.findall(r'^(\w+)="(.*)"$', blocks, flags=re.MULTILINE):
            variables[name] = Template(value).substitute(variables)
        spans = re.findall(r"`((?:xacle|torchrun|accelerate) [^`]+ [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for line in [*blocks.splitlines(), *spans]:
            if re.match(r"(xacle|torchrun|accelerate) ", line) and " ..." not in line.split("-m xacle")[0]:
                yield Template(line.split("  #")[0].replace(" ...", "")).substitute(variables)


COMMANDS = sorted(set(shown_commands()))


def test_the_guides_show_every_row_of_the_papers_table():
    shown = "\n".join(COMMANDS)
    for output in (
        "runs/stage1",
        "runs/stage12",
        "runs/stage123",
        "runs/stage3",
        "runs/stage2",
        "runs/stage23",
        "runs/teacher",
    ):
        assert re.search(rf"--output_dir {output}( |$)", shown, flags=re.MULTILINE)
    assert "xacle ensemble test123.csv test23.csv" in shown and "xacle caption --model runs/stage1" in shown


@pytest.mark.parametrize("line", COMMANDS)
def test_a_shown_command_exists(line):
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
