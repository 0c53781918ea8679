"""The model card: `model_card.md`, filled with what the weights' folder records. What is not recorded is not claimed."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from xacle.core.loading import is_hub_id
from xacle.core.provenance import NOTICE_FILE, read_json, record_of
from xacle.publish.license import Terms

TEMPLATE = Path(__file__).parents[1] / "model_card.md"

# Our names -> those of `evaluate`'s metrics, and how they are called on the card.
METRICS = {
    "SRCC": ("spearmanr", "SRCC"),
    "LCC": ("pearsonr", "LCC"),
    "KTAU": ("kendalltau", "KTAU"),
    "MSE": ("mse", "MSE"),
    "caption_SRCC": ("spearmanr", "SRCC of the captions' similarity to the rated texts"),
    "loss": ("loss", "cross-entropy of the captions"),
}
KINDS = {
    "scorer": ("audio-classification", "Audio-text alignment", ["audio-text-alignment", "text-to-audio", "custom_code"]),
    "captioner": ("audio-text-to-text", "Audio captioning", ["audio-captioning", "custom_code"]),
    "teacher": (None, "Audio-text similarity", ["clap", "human-clap"]),  # a `clap` has a pipeline, see `render_card`
}
# Of the training arguments, those that matter for the weights.
ARGUMENTS = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "optim", "weight_decay", "max_grad_norm"),
    *("bf16", "fp16", "seed", "data_seed", "metric_for_best_model"),
)
OTHER_GROUPS = ("ModelArguments", "RankingArguments", "ListenerArguments", "TeacherArguments")


@dataclass
class Example:
    """A pair with the model's score; the sound's `content` lies in the repository at `path`."""

    path: str
    text: str
    score: float
    content: bytes

    @property
    def file(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def cell(self) -> str:
        """The caption as it stands in a table."""
        return " ".join(self.text.split()).replace("|", "\\|")


def kind_of(config: dict) -> str:
    """What a folder's `config.json` is: "scorer", "captioner" or "teacher"."""
    if config["model_type"] != "xacle":
        return "teacher"
    return "captioner" if "XacleForConditionalGeneration" in (config.get("architectures") or ()) else "scorer"


def render_card(
    folder: Path,
    config: dict,
    repo_id: str,
    sources: list[dict],
    terms: Terms,
    *,
    datasets: list[str] | None = None,
    examples: list[Example] | None = None,
    address: str = "",
) -> ModelCard:
    """
    Args:
        folder: The model's; the records of its training (`run.json`, `trainer_state.json`) are read if it has them.
        config: Its `config.json`.
        repo_id: Where it is published.
        sources: What its weights derive from.
        datasets: Hub ids of what it was trained on.
        address: Where the repository's files are, for the sounds of the examples.
    """
    kind, run = kind_of(config), record_of(folder)
    results = measured_results(folder, run)
    if kind == "teacher" or not run.get("calibration"):
        results.pop("MSE", None)  # scores that are not on the ratings' scale have no distance to them
    validation, calibration = run.get("data", {}).get("validation"), run.get("calibration")
    pipeline_tag, task, tags = KINDS[kind]
    if config["model_type"] == "clap":
        pipeline_tag = "zero-shot-audio-classification"
    title = repo_id.rpartition("/")[2]
    metadata = ModelCardData(
        language="en",
        license=terms.license,
        license_name=terms.license_name,
        license_link=NOTICE_FILE if terms.license == "other" else None,
        library_name=None if config["model_type"] == "m2d_clap" else "transformers",
        pipeline_tag=pipeline_tag,
        base_model=_base_models(sources, run, repo_id) or None,
        tags=["audio", *tags, "xacle", "arxiv:2602.00604"],
        datasets=datasets or None,
        metrics=list(dict.fromkeys(METRICS[name][0] for name in results)) or None,
        model_name=title if results else None,
        eval_results=[
            EvalResult(
                task_type=pipeline_tag or "audio-text-similarity",
                task_name=task,
                dataset_type=Path(validation["table"]).stem,
                dataset_name=f"{Path(validation['table']).name} ({validation['pairs']} pairs)",
                dataset_split="validation",
                dataset_args={"checksum": validation["checksum"]} if validation.get("checksum") else None,
                metric_type=METRICS[name][0],
                metric_name=METRICS[name][1],
                metric_value=value,
            )
            for name, value in results.items()
        ]
        or None,
        widget=_widget(examples or [], address) or None,
    )
    language_models = [source["name"] for source in sources if source["role"] == "language model"]
    template = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True)
    text = template.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        card_data=metadata.to_yaml(),
        title=title,
        kind=kind,
        repo_id=repo_id,
        model_type=config["model_type"],
        language_model=language_models[0] if language_models else "a language model",
        notices=terms.notices,
        license_title=terms.license_name or terms.license,
        examples=examples,
        results=[{"name": METRICS[name][1], "value": value} for name, value in results.items()],
        validation=validation and {**validation, "table": Path(validation["table"]).name},
        score_scale=config.get("score_scale"),
        score_shift=config.get("score_shift"),
        calibration=calibration,
        chosen="finished" in run and _training_arguments(run).get("load_best_model_at_end"),
        runs=_runs(run),
        sources=sources,
    )
    return ModelCard(re.sub(r"\n{3,}", "\n\n", text))


def measured_results(folder: Path, run: dict) -> dict[str, float]:
    """The validation metrics that the run measured of these very weights, by our names; empty if there are none.

    Of a finished run they stand in its record, of a checkpoint in the trainer's history.
    """
    measured = run.get("validation_metrics")
    if measured is None:
        state = read_json(folder / "trainer_state.json")
        history = [entry for entry in state.get("log_history", []) if entry.get("step") == state["global_step"]]
        measured = {name: value for entry in history for name, value in entry.items()}
    found = {name: measured.get(f"eval_{name}") for name in METRICS}
    results = {name: value for name, value in found.items() if isinstance(value, (int, float)) and math.isfinite(value)}
    return results if "validation" in run.get("data", {}) else {}


def _base_models(sources: list[dict], run: dict, repo_id: str) -> list[str]:
    """The Hub's models among what this one derives from."""
    names = [source["name"] for source in sources]
    while run:
        names.append(run.get("base_model"))
        run = run.get("base")
    return [name for name in dict.fromkeys(filter(None, names)) if is_hub_id(name) and name != repo_id]


def _widget(examples: list[Example], address: str) -> list[dict]:
    return [
        {
            "src": f"{address}/{example.path}",
            "example_title": example.text,
            "output": {"text": f"{example.score:.2f}"},  # a "score" would be a probability
        }
        for example in examples
    ]


def _training_arguments(run: dict) -> dict:
    return run.get("arguments", {}).get("TrainingArguments", {})


def _runs(run: dict) -> list[dict]:
    """What the card has about a run and those it started from, the last one first; without folders of the machine."""
    runs = []
    while run:
        training, groups = _training_arguments(run), run["arguments"]
        own = [(name, value) for group in OTHER_GROUPS for name, value in groups.get(group, {}).items()]
        if not groups.get("ModelArguments", {}).get("lora_r"):
            own = [(name, value) for name, value in own if not name.startswith("lora_")]
        arguments = [(name, training.get(name)) for name in ARGUMENTS] + own
        seconds = run.get("train_metrics", {}).get("train_runtime")
        processes = run.get("world_size") or 1
        runs.append(
            {
                "stage": run["stage"][:1].upper() + run["stage"][1:],
                "tables": [{**table, "role": role, "table": Path(table["table"]).name} for role, table in run["data"].items()],
                "processes": f"{processes} process{'es' * (processes > 1)} ({run.get('device', 'device not recorded')})",
                "seconds": seconds and (f"{seconds / 3600:.1f} hours" if seconds > 3600 else f"{seconds:.0f} seconds"),
                "finished": run.get("finished"),
                "arguments": [(name, _printed(value)) for name, value in arguments if value not in (None, False, [], {}, -1)],
                "versions": [(name, value) for name, value in run["versions"].items() if value],
            }
        )
        run = run.get("base") or {}
    return runs


def _printed(value):
    """A value without the folders of the machine it was used on, which a run records in full."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
