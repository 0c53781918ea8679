"""Where the recipe leaves room: precision of the frozen encoder, order of the data, early stopping, a head's learning rate."""

import json

import pytest
import torch
from transformers import TrainingArguments

from xacle.demo.tiny_models import tiny_config, tiny_processor
from xacle.modeling_xacle import XacleForAlignmentScoring
from xacle.train import stage1_captioning, stage3_ratings
from xacle.train.trainer import AlignmentTrainer

QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True}


def trainer_of(folder, model=None, **arguments) -> AlignmentTrainer:
    pairs = [{"audio": "none.wav", "text": f"caption {index}", "score": index / 4} for index in range(40)]
    processor = tiny_processor()
    model = XacleForAlignmentScoring(tiny_config(processor)) if model is None else model
    return AlignmentTrainer(
        model, TrainingArguments(folder, **QUIET, **arguments), train_dataset=pairs, processing_class=processor
    )


def orders(trainer: AlignmentTrainer, epochs: int) -> list[tuple[int, ...]]:
    """The order of the pairs in each epoch."""
    trainer.data_collator = lambda examples: {"index": torch.tensor([int(example["text"].split()[1]) for example in examples])}
    loader, found = trainer.get_train_dataloader(), []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        found.append(tuple(torch.cat([batch["index"] for batch in loader]).tolist()))
    return found


def test_no_two_seeds_share_the_order_of_an_epoch(tmp_path):
    first, second = (orders(trainer_of(tmp_path, seed=seed), 4) for seed in (42, 43))
    assert len({*first, *second}) == 8
    assert orders(trainer_of(tmp_path, seed=42), 4) == first
    assert orders(trainer_of(tmp_path, seed=1, data_seed=7), 1) == orders(trainer_of(tmp_path, seed=2, data_seed=7), 1)


def test_the_frozen_encoder_computes_in_float32_under_autocast():
    """What the cache holds, what stage 3 trains on and what is scored are the same states."""
    torch.manual_seed(0)
    model = XacleForAlignmentScoring(tiny_config(tiny_processor())).train()
    fbank = torch.randn(2, 998, 128)
    exact = model.get_audio_states(fbank)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.get_audio_states(fbank), exact)
        assert model.model.get_audio_features(fbank).pooler_output.dtype == torch.bfloat16  # the projector is trained in it
    model.config.freeze_audio_encoder = False
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(model.eval().get_audio_states(fbank), exact)


def test_the_head_has_a_learning_rate_of_its_own(task, tmp_path):
    model = XacleForAlignmentScoring(tiny_config(tiny_processor()))
    trainer = trainer_of(tmp_path, model, learning_rate=1e-5)
    trainer.head_learning_rate = 1e-3
    trainer.create_optimizer_and_scheduler(10)
    rates = {parameter: group["lr"] for group in trainer.optimizer.param_groups for parameter in group["params"]}
    decays = {parameter: group["weight_decay"] for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert len(rates) == sum(parameter.requires_grad for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rates[parameter] == (1e-3 if name.startswith("score_head.") else 1e-5), name
    plain = trainer_of(tmp_path, model, learning_rate=1e-5)
    plain.create_optimizer_and_scheduler(10)
    same = {parameter: group["weight_decay"] for group in plain.optimizer.param_groups for parameter in group["params"]}
    assert decays == same

    folder = tmp_path / "run"
    stage3_ratings.main(task.arguments(folder, head_learning_rate=0.02, num_train_epochs=1, learning_rate=1e-12))
    moved = XacleForAlignmentScoring.from_pretrained(folder).state_dict()
    start = XacleForAlignmentScoring.from_pretrained(task.folder / "model").state_dict()
    change = {name: (moved[name] - start[name]).abs().max().item() for name in start}
    assert change["score_head.out_proj.weight"] > 1e-3
    assert max(value for name, value in change.items() if not name.startswith("score_head.")) < 1e-6
    with pytest.raises(ValueError, match="is for the score head, which this model does not have"):
        stage1_captioning.main(
            task.arguments(tmp_path / "captioner", "train_captions", validation_file=None, head_learning_rate=0.1)
        )


def test_training_stops_early(task, tmp_path):
    """With a learning rate of nothing, the first evaluation stays the best."""
    stage3_ratings.main(
        task.arguments(tmp_path / "run", early_stopping_patience=2, num_train_epochs=9, learning_rate=1e-12, warmup_steps=0)
    )
    history = json.loads((tmp_path / "run/log_history.json").read_text())
    assert [entry["epoch"] for entry in history if "eval_SRCC" in entry] == [1, 2, 3]
    with pytest.raises(ValueError, match="--early-stopping-patience needs --validation-file"):
        stage3_ratings.main(task.arguments(tmp_path / "none", early_stopping_patience=2, validation_file=None))
