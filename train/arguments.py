"""The arguments of a training script: the stage's own defaults <- `--config FILE.yaml` <- the command line."""

import argparse
import copy
import dataclasses
import difflib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import transformers
import yaml
from transformers import HfArgumentParser
from transformers.trainer_utils import HubStrategy

from xacle.core.clips import Share
from xacle.core.columns import ColumnNames
from xacle.core.sources import HubDataset

CONFIGS = Path(__file__).parent / "configs"


@dataclass
class ModelArguments:
    """The model to train, and which of its parts."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the Xacle model to start from, of any stage."}
    )
    audio_encoder: str | None = field(
        default=None, metadata={"help": "Without --model-name-or-path: BEATs, as written by `xacle convert beats`."}
    )
    language_model: str | None = field(
        default=None, metadata={"help": "Without --model-name-or-path: the language model, e.g. Qwen/Qwen2.5-0.5B-Instruct."}
    )
    model_config: str | None = field(
        default=None,
        metadata={"help": 'Fields of XacleConfig to set, as JSON or as a mapping in YAML: \'{"projector_type": "qformer"}\'.'},
    )
    freeze_audio_encoder: bool = field(default=True, metadata={"help": "Leave BEATs as it is, as the paper does."})
    freeze_language_model: bool = field(default=False, metadata={"help": "Leave the language model as it is."})
    freeze_token_embeddings: bool = field(
        default=False,
        metadata={"help": "Leave the token embeddings as they are, but for the four special tokens': cheaper optimizer steps."},
    )
    lora_r: int = field(default=0, metadata={"help": "Rank of LoRA adapters in the language model; 0 trains it whole."})
    lora_alpha: int | None = field(default=None, metadata={"help": "LoRA's alpha; twice the rank by default."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout in front of the adapters."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        metadata={"help": "The language model's linear layers that get adapters."},
    )
    lora_output: str = field(
        default="merged",
        metadata={"help": "merged: a normal model folder. adapter: the adapter alone.", "choices": ["merged", "adapter"]},
    )


@dataclass
class DataArguments:
    """The tables to train on and to evaluate with, and how their sounds are kept."""

    _argument_group_name = "data"

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Training pairs: a table (.csv, .jsonl), Parquet, WebDataset tar files, a pattern of several "
            "('shards/*.tar'), or a folder of save_to_disk."
        },
    )
    validation_file: str | None = field(default=None, metadata={"help": "Validation pairs, likewise."})
    train_dataset: str | None = field(default=None, metadata={"help": "Instead of --train-file: id of a data set on the Hub."})
    train_split: str = field(default="train", metadata={"help": "Its split."})
    train_dataset_config: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_dataset_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit."})
    validation_dataset: str | None = field(default=None, metadata={"help": "Instead of --validation-file, likewise."})
    validation_split: str = field(default="validation", metadata={"help": "Its split."})
    validation_dataset_config: str | None = field(
        default=None, metadata={"help": "Its configuration; the training data's by default, if it is the same data set."}
    )
    validation_dataset_revision: str | None = field(default=None, metadata={"help": "Its revision, likewise."})
    audio_column: str | None = field(
        default=None, metadata={"help": "Column of sounds or their names: wav_file_name, audio ... by default."}
    )
    text_column: str | None = field(default=None, metadata={"help": "Column of captions: text or caption by default."})
    score_column: str | None = field(
        default=None, metadata={"help": "Column of labels: average_score, score, clap_score by default."}
    )
    audio_dir: str | None = field(
        default=None, metadata={"help": "Folder of --train-file's sounds; the table's own by default."}
    )
    validation_audio_dir: str | None = field(default=None, metadata={"help": "Folder of --validation-file's sounds."})
    on_error: str = field(
        default="stop",
        metadata={"help": "Rows that cannot be used: stop, or skip and list them in a file.", "choices": ["stop", "skip"]},
    )
    allow_overlap: bool = field(default=False, metadata={"help": "Accept clips that are in both tables."})
    feature_cache: str = field(
        default="feature_cache", metadata={"help": "Folder for the encoder's outputs, shared by all runs; 'none' for no cache."}
    )
    feature_cache_dtype: str = field(
        default="float32",
        metadata={"help": "float16 takes half the disk; scores then differ by about 1e-4.", "choices": ["float32", "float16"]},
    )

    def source(self, role: str):
        """The source of the pairs of `"train"` or `"validation"`, for `open_source`; `None` if there is none.

        Raises:
            ValueError: if a file and a data set are given.
        """
        file, dataset = getattr(self, f"{role}_file"), getattr(self, f"{role}_dataset")
        if dataset is None:
            return file
        if file is not None:
            raise ValueError(f"pass --{role}-file or --{role}-dataset, not both")
        config, revision = getattr(self, f"{role}_dataset_config"), getattr(self, f"{role}_dataset_revision")
        if dataset == self.train_dataset:
            config, revision = config or self.train_dataset_config, revision or self.train_dataset_revision
        return HubDataset(dataset, getattr(self, f"{role}_split"), config, revision)

    @property
    def names(self) -> ColumnNames:
        return ColumnNames(self.audio_column, self.text_column, self.score_column)


@dataclass
class ListenerArguments:
    """What to do with single listeners' ratings (SPO-CLAPScore)."""

    _argument_group_name = "single listeners' ratings"

    listener_screening: float | None = field(
        default=None, metadata={"help": "Drop ratings that no other listener of the pair comes so close to (SPO: 5)."}
    )
    listener_standardization: bool = field(
        default=False, metadata={"help": "Take out each training listener's own mean and spread."}
    )


@dataclass
class RankingArguments:
    """The list-wise loss and the augmentation of stages 2 and 3."""

    _argument_group_name = "loss and augmentation"

    listnet_temperature: float | None = field(default=None, metadata={"help": "Temperature of the targets (paper: 1)."})
    listnet_prediction_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of the predictions; the targets' by default."}
    )
    freq_mask_width: int = field(default=0, metadata={"help": "SpecAugment: mel bins (paper, stage 3: 15)."})
    time_mask_width: int = field(default=0, metadata={"help": "SpecAugment: frames (paper, stage 3: 30)."})

    def config_fields(self) -> dict:
        """The fields of [`XacleConfig`] to set."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """Those of transformers, and what publishing with `--push-to-hub` needs besides."""

    hub_strategy: HubStrategy | str = field(
        default="end",
        metadata={"help": "When to push: end, or every_save for checkpoints as well."},
    )
    hub_license: str | None = field(
        default=None,
        metadata={"help": "License of the pushed weights; the strictest of what they derive from by default."},
    )
    accept_license: bool = field(
        default=False,
        metadata={"help": "You may publish under the licenses of what the weights derive from; pushing asks for it."},
    )

    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the score head, which starts at random; --learning-rate by default."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after so many evaluations without a better --metric-for-best-model (released code: 20)."},
    )

    @property
    def share(self) -> Share:
        """This process' share of work that all of the run's processes do together."""
        return Share(self.process_index, self.world_size)


# The best checkpoint must have been saved when it was evaluated: who sets the one moves the other.
FOLLOWERS = {"eval_strategy": "save_strategy", "eval_steps": "save_steps"}
MAX_CHOICES = 6  # named in the help
RATINGS = "average_score (0-10), or score and listener_id"
TABLES = {
    "captioning": "Trains on a table with wav_file_name and text.",
    "pseudo_labels": "Trains on a table with wav_file_name, text and clap_score, as xacle pseudo-label writes it.",
    "ratings": f"Trains on a table with wav_file_name, text and {RATINGS}.",
    "teacher": f"Trains on a table with wav_file_name, text and {RATINGS}.",
}


def option(name: str) -> str:
    """An argument's name as it is typed: `train_file` -> `--train-file`."""
    return f"--{name.replace('_', '-')}"


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Names each argument once, with hyphens, and no default where there is none."""

    def _format_action_invocation(self, action):
        named_once = copy.copy(action)
        named_once.option_strings = action.option_strings[-1:]
        if action.choices and len(action.choices) > MAX_CHOICES:
            named_once.metavar = "NAME"
        return super()._format_action_invocation(named_once)

    def _get_default_metavar_for_optional(self, action):
        kind = getattr(action.type, "__name__", "value")
        return ("bool" if kind == "string_to_bool" else kind).upper()

    def _get_help_string(self, action):
        if action.option_strings[0].startswith("--no_"):
            return f"Turn {option(action.dest)} off."
        return action.help if action.default is None else super()._get_help_string(action)


class _Parser(HfArgumentParser):
    def error(self, message: str):
        message = re.sub(r"--\w+/(--[\w-]+)", r"\1", message)  # both forms of an option
        raise ValueError(f"{message} (`{self.prog} --help` explains all arguments)")

    def format_help(self) -> str:
        """The stage's groups first; the hundred arguments of the `Trainer`, which are of no group, after them."""
        self._optionals.title = "transformers.TrainingArguments"
        self._action_groups.sort(key=lambda group: group is self._optionals)
        return super().format_help()


def parse_arguments(argv: list[str] | None, stage_config: Path, *kinds: type) -> tuple:
    """
    Args:
        argv: The command line after the command; the process' own if `None`. `--config FILE.yaml` may be among it.
        stage_config: The stage's defaults.
        kinds: Dataclasses to fill; [`TrainingArguments`] is added to them.

    Returns:
        An instance of each of `kinds`, and the [`TrainingArguments`].

    Raises:
        ValueError, FileNotFoundError: for a config that cannot be read, and for arguments that do not exist or make no sense.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    command = f"xacle train {stage_config.stem.replace('_', '-')}"
    parser = _Parser(
        [*kinds, TrainingArguments],
        prog=command,
        usage=f"{command} [--config FILE.yaml] [--argument VALUE ...]",
        description=f"{TABLES[stage_config.stem]} Defaults are the paper's (train/configs/{stage_config.name}).",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    config_group = parser.add_argument_group("a file of arguments")
    config_group.add_argument("--config", type=Path, help="YAML file with any of these arguments; the command line wins.")
    known = {field.name for kind in (*kinds, TrainingArguments) for field in dataclasses.fields(kind) if field.init}
    defaults = _read_config(stage_config, known)
    chosen = _Parser(add_help=False, allow_abbrev=False)
    for name in ("config", *FOLLOWERS, *FOLLOWERS.values()):
        chosen.add_argument(*dict.fromkeys((f"--{name}", option(name))))
    chosen = vars(chosen.parse_known_args(argv)[0])
    config = {} if chosen["config"] is None else _read_config(Path(chosen["config"]), known)
    for leader, follower in FOLLOWERS.items():
        given = chosen[leader] if chosen[leader] is not None else config.get(leader)
        if given is not None and chosen[follower] is None and follower not in config:
            config[follower] = given
    parser.set_defaults(**{**defaults, **config})
    *parsed, _, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    for word in unknown:
        close = difflib.get_close_matches(word.lstrip("-").partition("=")[0].replace("-", "_"), known, n=1)
        hint = f"; did you mean {option(close[0])}?" if close else f"; `{command} --help` lists all"
        raise ValueError(f"{word} is no argument of {command}{hint}")
    for group in parsed[:-1]:
        for argument in dataclasses.fields(group):
            choices, value = argument.metadata.get("choices"), getattr(group, argument.name)
            if choices and value not in choices:  # argparse does not check what comes from a config
                raise ValueError(f"{option(argument.name)} must be one of {', '.join(choices)}, got {value!r}")
    training = parsed[-1]
    if getattr(parsed[0], "lora_r", 0) and training.push_to_hub:
        if parsed[0].lora_output == "adapter":
            raise ValueError("--push-to-hub publishes whole models, not adapters: choose --lora-output merged")
        training.hub_strategy = HubStrategy.END  # checkpoints hold adapters
    return tuple(parsed)


def _read_config(file: Path, known: set[str]) -> dict:
    if not file.is_file():
        raise FileNotFoundError(f"no config at '{file}'")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"'{file}' is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"'{file}' must hold `argument: value` lines")
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            raise ValueError(
                f"'{file}' sets '{name}', which is no argument" + (f"; did you mean '{close[0]}'?" if close else "")
            )
    return values
