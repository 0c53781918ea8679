"""Stage 1: learn to caption. `xacle train captioning --config FILE.yaml [--any_argument ...]`"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainingArguments

from xacle.modeling_xacle import XacleForConditionalGeneration
from xacle.scoring.captions import SENTENCE_MODEL, caption_scores, generate_captions, write_captions
from xacle.scoring.metrics import alignment_metrics
from xacle.train.arguments import CONFIGS, DataArguments, ModelArguments, parse_arguments
from xacle.train.build import add_lora, build_model
from xacle.train.collate import PairCollator, PairDataset
from xacle.train.data import PairTable, read_table
from xacle.train.ranking import read_tables
from xacle.train.run import RunRecord, prepare_features, run_training, save_final, set_up
from xacle.train.trainer import CaptioningTrainer


@dataclass
class CaptioningArguments:
    """The paper's stage-1 score: do captions come close to the text where people say that text and sound match?"""

    rating_file: str | None = field(
        default=None, metadata={"help": "Rated pairs: after each evaluation, captions are scored against their texts (SRCC)."}
    )
    rating_audio_dir: str | None = field(default=None, metadata={"help": "Folder of rating_file's sounds."})
    sentence_model: str = field(default=SENTENCE_MODEL, metadata={"help": "Any sentence-transformers model."})


class CaptionEvaluation:
    """SRCC between ratings and the captions' similarity to the rated texts; the captions go to `captions.csv`."""

    def __init__(self, table: PairTable, processor, sentence_model: str, training: TrainingArguments):
        self.table, self.processor, self.sentence_model, self.training = table, processor, sentence_model, training

    def __call__(self, model) -> dict[str, float]:
        table = self.table
        clips = table.used_audio
        batch_size = self.training.per_device_eval_batch_size
        captions = dict(zip(clips, generate_captions(model, self.processor, list(clips.values()), batch_size), strict=True))
        written = [captions[clip] for clip in table.clip_index.tolist()]
        texts = [table.captions[caption] for caption in table.caption_index]
        scores = caption_scores(written, texts, self.sentence_model, model.device)
        names = [table.clips[clip] for clip in table.clip_index]
        write_captions(Path(self.training.output_dir) / "captions.csv", names, texts, written, scores)
        return {"caption_SRCC": alignment_metrics(scores, table.labels)["SRCC"]}


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train on a table of clips and captions; returns the validation metrics of the saved model."""
    kinds = (ModelArguments, DataArguments, CaptioningArguments)
    model_arguments, data, captioning, training = parse_arguments(argv, CONFIGS / "captioning.yaml", *kinds)
    checkpoint = set_up(training, data)
    train, validation = read_tables("caption", data, training)
    model, processor = build_model(XacleForConditionalGeneration, model_arguments)

    kind = "audio_states" if model.config.freeze_audio_encoder else "fbank"
    tables = {"train": train} if validation is None else {"train": train, "validation": validation}
    datasets = {}
    for role, table in tables.items():
        tables[role], features = prepare_features(kind, table, model, processor, data, training)
        datasets["eval_dataset" if role == "validation" else "train_dataset"] = PairDataset(tables[role], features)
    evaluate_captions = None
    if captioning.rating_file is not None:
        rated = read_table(captioning.rating_file, captioning.rating_audio_dir, "rating", data.on_error)
        evaluate_captions = CaptionEvaluation(rated, processor, captioning.sentence_model, training)
    if model_arguments.lora_r:
        model = add_lora(model, model_arguments)

    trainer = CaptioningTrainer(
        model=model,
        args=training,
        data_collator=PairCollator(processor, "captioning"),
        processing_class=processor,
        evaluate_captions=evaluate_captions,
        **datasets,
    )
    record = RunRecord("stage 1: captioning", [model_arguments, data, captioning, training], tables)
    run_training(trainer, record, checkpoint)
    metrics = trainer.evaluate() if validation is not None else {}
    record.add(validation_metrics=metrics)
    save_final(trainer, record, model_arguments.lora_output)
    return metrics


if __name__ == "__main__":
    main()
