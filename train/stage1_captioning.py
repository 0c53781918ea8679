"""Stage 1: learn to caption. `xacle train captioning --config FILE.yaml [--any-argument ...]`"""

from dataclasses import dataclass, field
from pathlib import Path

from xacle.modeling_xacle import XacleForConditionalGeneration
from xacle.publish.trainer_mixin import check_license
from xacle.scoring.captions import SENTENCE_MODEL, caption_scores, generate_captions, load_sentence_model, write_captions
from xacle.scoring.metrics import alignment_metrics
from xacle.train.arguments import CONFIGS, DataArguments, ModelArguments, TrainingArguments, parse_arguments
from xacle.train.batches import PairDataset, prepare_datasets
from xacle.train.build import build_model
from xacle.train.data import check_labels, read_table, write_rejected
from xacle.train.lora_and_freezing import add_lora
from xacle.train.run import finish, run_script, run_training
from xacle.train.run_record import RunRecord
from xacle.train.set_up import read_tables, set_up
from xacle.train.trainer import CaptioningTrainer


@dataclass
class CaptioningArguments:
    """The paper's stage-1 score: do captions come close to the text where people say that text and sound match?"""

    _argument_group_name = "captions scored against ratings"

    rating_file: str | None = field(
        default=None, metadata={"help": "Rated pairs: after each evaluation, captions are scored against their texts (SRCC)."}
    )
    rating_audio_dir: str | None = field(default=None, metadata={"help": "Folder of --rating-file's sounds."})
    sentence_model: str = field(default=SENTENCE_MODEL, metadata={"help": "Any sentence-transformers model."})


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train on a table of clips and captions; returns the validation metrics of the saved model."""
    arguments = parse_arguments(argv, CONFIGS / "captioning.yaml", ModelArguments, DataArguments, CaptioningArguments)
    model_arguments, data, captioning, training = arguments
    checkpoint = set_up(training, data, ("loss", "caption_SRCC"))
    if captioning.rating_file is not None and data.source("validation") is None:
        raise ValueError("--rating-file is evaluated together with --validation-file: pass both, or use `xacle caption` later")
    tables = read_tables("caption", data, training)
    if captioning.rating_file is not None:
        tables["rated"] = rated = read_table(
            captioning.rating_file,
            captioning.rating_audio_dir,
            "rating",
            on_error=data.on_error,
            audio_dir_option="--rating-audio-dir",
        )
        check_labels(rated)
        write_rejected(rated, training, "rated")
        sentence_model = load_sentence_model(captioning.sentence_model, training.device)

    model, processor = build_model(XacleForConditionalGeneration, model_arguments, freq_mask_width=0, time_mask_width=0)
    check_license(model.config, training)
    datasets = prepare_datasets(tables, model, processor, data, training)
    evaluate_captions = None
    if captioning.rating_file is not None:
        evaluate_captions = CaptionEvaluation(datasets["rated"], processor, sentence_model, training)

    trainer = CaptioningTrainer(
        model=add_lora(model, model_arguments),
        args=training,
        train_dataset=datasets["train"],
        eval_dataset=datasets.get("validation"),
        processing_class=processor,
        evaluate_captions=evaluate_captions,
    )
    run_training(trainer, RunRecord("stage 1: captioning", arguments, datasets), checkpoint)
    return finish(trainer, model_arguments.lora_output)


class CaptionEvaluation:
    """SRCC between ratings and the captions' similarity to the rated texts; the captions go to `captions.csv`."""

    def __init__(self, rated: PairDataset, processor, sentence_model, training: TrainingArguments):
        self.rated, self.processor, self.sentence_model, self.training = rated, processor, sentence_model, training

    def __call__(self, model) -> dict[str, float]:
        table, features = self.rated.table, self.rated.features
        clips = table.used_audio
        states = None
        if features is not None and features.kind == "audio_states":
            states = [features[clip] for clip in clips]
        batch_size = self.training.per_device_eval_batch_size
        written = generate_captions(model, self.processor, list(clips.values()), batch_size, states)
        caption_of = dict(zip(clips, written, strict=True))
        captions = [caption_of[clip] for clip in table.clip_index.tolist()]
        texts = [table.captions[caption] for caption in table.caption_index]
        scores = caption_scores(captions, texts, self.sentence_model)
        names = [table.clips[clip] for clip in table.clip_index]
        write_captions(Path(self.training.output_dir) / "captions.csv", names, texts, captions, scores)
        return {"caption_SRCC": alignment_metrics(scores, table.labels)["SRCC"]}


if __name__ == "__main__":
    run_script(main)
