"""Stages 2 and 3 are one program: learn to rank pairs by labels, choose the best checkpoint by SRCC."""

from pathlib import Path

from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from xacle.core.provenance import merge_sources
from xacle.modeling_xacle import XacleForAlignmentScoring
from xacle.scoring.calibration import calibrate
from xacle.train.arguments import DataArguments, ListenerArguments, ModelArguments, RankingArguments, TrainingArguments
from xacle.train.build import add_lora, build_model
from xacle.train.collate import PairCollator, PairDataset
from xacle.train.data import PairTable, check_labels, read_table
from xacle.train.run import (
    RunRecord,
    check_batches,
    check_license,
    finish,
    logger,
    prepare_features,
    run_training,
    set_up,
    share_of,
    write_rejected,
)
from xacle.train.splits import check_overlap
from xacle.train.teacher.pseudo_labels import teacher_sources
from xacle.train.trainer import AlignmentTrainer


def train_ranking(
    stage: str,
    label: str,
    model_arguments: ModelArguments,
    data: DataArguments,
    ranking: RankingArguments,
    training: TrainingArguments,
    listeners: ListenerArguments | None = None,
) -> dict[str, float]:
    """Train a scorer on `label`s ("pseudo_label" or "rating"), calibrate it on the validation ratings, save it.

    Returns:
        The validation metrics of the saved model; empty without validation pairs.
    """
    checkpoint = set_up(training, data)
    train, validation = read_tables(label, data, training, listeners)
    for table in filter(None, (train, validation)):
        check_labels(table)

    fields = {name: getattr(ranking, name) for name in ("freq_mask_width", "time_mask_width")}
    for name in ("listnet_temperature", "listnet_prediction_temperature"):
        if getattr(ranking, name) is not None:
            fields[name] = getattr(ranking, name)
    model, processor = build_model(XacleForAlignmentScoring, model_arguments, **fields)
    if label == "pseudo_label":
        model.config.weight_sources = merge_sources(model.config.weight_sources, teacher_sources(data.train_file))
    check_license(model.config, training)

    # States of the encoder serve as long as it is frozen and what it sees is not masked.
    augmented = model.config.freq_mask_width or model.config.time_mask_width
    frozen = model.config.freeze_audio_encoder
    kind = "audio_states" if frozen and not augmented else "fbank"
    train, features = prepare_features(kind, "train", train, model, processor, data, training)
    datasets = {"train_dataset": PairDataset(train, features)}
    if validation is not None:
        kind = "audio_states" if frozen else "fbank"
        validation, features = prepare_features(kind, "validation", validation, model, processor, data, training)
        datasets["eval_dataset"] = PairDataset(validation, features)
    if model_arguments.lora_r:
        model = add_lora(model, model_arguments)

    collator = PairCollator(processor, static_shapes=training.torch_compile)
    trainer = AlignmentTrainer(model=model, args=training, data_collator=collator, processing_class=processor, **datasets)
    tables = {"train": train, "validation": validation} if validation is not None else {"train": train}
    arguments = [model_arguments, data, ranking, training, *([listeners] if listeners else [])]
    record = RunRecord(stage, arguments, tables)
    run_training(trainer, record, checkpoint)

    adapter_only = model_arguments.lora_r and model_arguments.lora_output == "adapter"  # has no place for a calibration
    title = "validation"
    if validation is not None and label == "rating" and not adapter_only:
        prediction = trainer.predict(datasets["eval_dataset"])
        try:
            calibrate(trainer.model.config, prediction.predictions, prediction.label_ids)
            record.add(calibration={"table": Path(validation.source).name, "pairs": len(validation)})
            title = "validation, calibrated on it"
        except ValueError as error:
            logger.warning(f"not calibrated: {error}")
    return finish(trainer, record, model_arguments.lora_output, title)


def read_tables(
    label: str, data: DataArguments, training: TrainingArguments, listeners: ListenerArguments | None = None
) -> tuple[PairTable, PairTable | None]:
    """The training and the validation table, checked against each other; without the latter, nothing is evaluated."""
    if data.train_file is None:
        raise ValueError("pass --train_file, the table to train on")
    options = {} if listeners is None else dict(vars(listeners))
    train = read_table(data.train_file, data.audio_dir, label, data.on_error, **options)
    write_rejected(train, training, "train")
    check_batches(len(train), training, train.source)
    if label != "caption" and training.train_batch_size * training.world_size == 1:
        raise ValueError("a list needs at least two pairs: raise --per_device_train_batch_size")
    if data.validation_file is None:
        logger.warning("without --validation_file nothing is evaluated and the last weights are kept")
        training.eval_strategy = IntervalStrategy.NO
        training.do_eval = training.load_best_model_at_end = False
        if training.save_strategy == SaveStrategy.BEST:
            training.save_strategy = SaveStrategy.EPOCH
        return train, None
    validation_label = "caption" if label == "caption" else "any"
    audio_dir = data.validation_audio_dir
    option = "--validation_audio_dir"
    validation = read_table(data.validation_file, audio_dir, validation_label, data.on_error, audio_dir_option=option)
    write_rejected(validation, training, "validation")
    if validation_label == "any" and len(validation) < 2:
        raise ValueError(f"'{validation.source}' has one usable pair; ranks need at least two")
    memory = None if data.feature_cache == "none" else Path(data.feature_cache)
    check_overlap(train, validation, data.allow_overlap, memory, share_of(training))
    return train, validation
