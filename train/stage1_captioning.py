"""Stage 1: learn to caption. `xacle train captioning --config FILE.yaml [--any_argument ...]`"""

from dataclasses import dataclass, field
from pathlib import Path

from xacle.modeling_xacle import XacleForConditionalGeneration
from xacle.scoring.captions import SENTENCE_MODEL, caption_scores, generate_captions, load_sentence_model, write_captions
from xacle.scoring.metrics import alignment_metrics
from xacle.train.arguments import CONFIGS, DataArguments, ModelArguments, parse_arguments
from xacle.train.build import add_lora, build_model
from xacle.train.collate import PairCollator, PairDataset
from xacle.train.data import PairTable, check_labels, read_table
from xacle.train.feature_cache import ClipFeatures
from xacle.train.ranking import read_tables
from xacle.train.run import (
    RunRecord,
    check_license,
    finish,
    prepare_features,
    run_script,
    run_training,
    set_up,
    write_rejected,
)
from xacle.train.trainer import CaptioningTrainer


@dataclass
class CaptioningArguments:
    """The paper's stage-1 score: do captions come close to the text where people say that text and sound match?"""

    _argument_group_name = "captions scored against ratings"

    rating_file: str | None = field(
        default=None, metadata={"help": "Rated pairs: after each evaluation, captions are scored against their texts (SRCC)."}
    )
    rating_audio_dir: str | None = field(default=None, metadata={"help": "Folder of rating_file's sounds."})
    sentence_model: str = field(default=SENTENCE_MODEL, metadata={"help": "Any sentence-transformers model."})


class CaptionEvaluation:
    """SRCC between ratings and the captions' similarity to the rated texts; the captions go to `captions.csv`."""

    def __init__(self, table: PairTable, features: ClipFeatures | None, processor, sentence_model, training):
        self.table, self.features, self.processor = table, features, processor
        self.sentence_model, self.training = sentence_model, training

    def __call__(self, model) -> dict[str, float]:
        table = self.table
        clips = table.used_audio
        states = None
        if self.features is not None and self.features.kind == "audio_states":
            states = [self.features[clip] for clip in clips]
        batch_size = self.training.per_device_eval_batch_size
        written = generate_captions(model, self.processor, list(clips.values()), batch_size, states)
        caption_of = dict(zip(clips, written, strict=True))
        captions = [caption_of[clip] for clip in table.clip_index.tolist()]
        texts = [table.captions[caption] for caption in table.caption_index]
        scores = caption_scores(captions, texts, self.sentence_model)
        names = [table.clips[clip] for clip in table.clip_index]
        write_captions(Path(self.training.output_dir) / "captions.csv", names, texts, captions, scores)
        return {"caption_SRCC": alignment_metrics(scores, table.labels)["SRCC"]}


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train on a table of clips and captions; returns the validation metrics of the saved model."""
    kinds = (ModelArguments, DataArguments, CaptioningArguments)
    model_arguments, data, captioning, training = parse_arguments(argv, CONFIGS / "captioning.yaml", *kinds)
    checkpoint = set_up(training, data, ("loss", "caption_SRCC"))
    if captioning.rating_file is not None and data.validation_file is None:
        raise ValueError("--rating_file is evaluated together with --validation_file: pass both, or use `xacle caption` later")
    train, validation = read_tables("caption", data, training)
    tables = {"train": train} if validation is None else {"train": train, "validation": validation}
    sentence_model = None
    if captioning.rating_file is not None:
        tables["rated"] = read_table(
            captioning.rating_file,
            captioning.rating_audio_dir,
            "rating",
            data.on_error,
            audio_dir_option="--rating_audio_dir",
        )
        check_labels(tables["rated"])
        write_rejected(tables["rated"], training, "rated")
        sentence_model = load_sentence_model(captioning.sentence_model, training.device)
    model, processor = build_model(XacleForConditionalGeneration, model_arguments, freq_mask_width=0, time_mask_width=0)
    check_license(model.config, training)

    kind, features = "audio_states" if model.config.freeze_audio_encoder else "fbank", {}
    for role, table in tables.items():
        tables[role], features[role] = prepare_features(kind, role, table, model, processor, data, training)
    datasets = {role: PairDataset(tables[role], features[role]) for role in tables if role != "rated"}
    evaluate_captions = None
    if sentence_model is not None:
        evaluate_captions = CaptionEvaluation(tables["rated"], features["rated"], processor, sentence_model, training)
    if model_arguments.lora_r:
        model = add_lora(model, model_arguments)

    trainer = CaptioningTrainer(
        model=model,
        args=training,
        data_collator=PairCollator(processor, "captioning", static_shapes=training.torch_compile),
        processing_class=processor,
        evaluate_captions=evaluate_captions,
        train_dataset=datasets["train"],
        eval_dataset=datasets.get("validation"),
    )
    record = RunRecord("stage 1: captioning", [model_arguments, data, captioning, training], tables)
    run_training(trainer, record, checkpoint)
    return finish(trainer, record, model_arguments.lora_output)


if __name__ == "__main__":
    run_script(main)
