"""Training: steps of the three stages from cached features, against decoding and encoding in every step."""

from collections.abc import Callable

import torch
from transformers.utils import logging

from xacle.benchmarks.baseline import PlainModel, plain_adamw, twin
from xacle.benchmarks.bench import Bench
from xacle.benchmarks.measure import default_malloc, interleaved, table, target
from xacle.modeling_xacle import XacleForAlignmentScoring, XacleForConditionalGeneration, alignment_loss
from xacle.train.batches import INPUT_NAMES, PairCollator
from xacle.train.clip_features import ClipFeatures, cache_features
from xacle.train.lora_and_freezing import special_token_ids, train_token_rows

BATCH = 4


class Step:
    """One way to make a training step, in two parts that are timed apart: gradients, clipped, and the optimizer.

    The learning rate is zero: the arithmetic is the same, and all ways keep computing with the same weights.
    """

    def __init__(self, model, loss: Callable[[], torch.Tensor], trained: list, optimizer: torch.optim.Optimizer):
        self.model, self.loss, self.trained, self.optimizer = model, loss, trained, optimizer

    def gradients(self) -> tuple[float, float]:
        """The loss and the norm of its gradients."""
        default_malloc()
        self.model.train()
        chosen = {id(weight) for weight in self.trained}
        for weight in self.model.parameters():
            weight.requires_grad_(id(weight) in chosen).grad = None
        torch.manual_seed(0)
        loss = self.loss()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        return loss.item(), norm.item()

    def step(self) -> None:
        self.optimizer.step()


def trainable(model, language_model: bool = True) -> list:
    """The weights a stage trains: all but the encoder's, or also without the language model's."""
    left_out = [model.model.audio_tower] if language_model else [model.model.audio_tower, model.model.language_model]
    frozen = {id(weight) for module in left_out for weight in module.parameters()}
    return [weight for weight in model.parameters() if id(weight) not in frozen]


def captioner_of(model: XacleForAlignmentScoring) -> XacleForConditionalGeneration:
    """The captioner that shares the scorer's weights."""
    with torch.device("meta"):
        captioner = XacleForConditionalGeneration(model.config)
    captioner.model = model.model
    captioner.lm_head.weight = model.get_input_embeddings().weight
    return captioner


class Training:
    """The steps of the three stages on one batch: ours, from the cache, and the plain ones."""

    def __init__(self, bench: Bench, model, batch: int, bf16: bool = False):
        self.bench, self.model, self.bf16 = bench, model, bf16
        self.audio = [bench.sounds[pair % len(bench.sounds)] for pair in range(batch)]
        self.captions = [bench.captions[pair % len(bench.captions)] for pair in range(batch)]
        self.labels = torch.linspace(0, 10, batch)
        clips, folder = dict(enumerate(self.audio)), bench.folder / "cache"
        logging.set_verbosity_error()
        self.features = {
            kind: cache_features(kind, clips, bench.processor, folder, model) for kind in ("audio_states", "fbank")
        }
        self.state = None  # AdamW's averages, which all ways share: they take twice the weights' memory

    def _features_of_batch(self, collator: PairCollator, features: ClipFeatures) -> dict[str, torch.Tensor]:
        name = INPUT_NAMES[features.kind]
        pairs = zip(self.captions, self.labels.tolist(), strict=True)
        batch = collator(
            [{"clip": i, "text": text, "score": label, name: features[i]} for i, (text, label) in enumerate(pairs)]
        )
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    def _ours(self, model, stage: int) -> Callable[[], torch.Tensor]:
        collator = PairCollator(self.bench.processor, "captioning" if stage == 1 else "scoring")
        features = self.features["fbank" if stage == 3 else "audio_states"]

        def loss() -> torch.Tensor:
            batch = self._features_of_batch(collator, features)
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16):
                if stage == 1:
                    return model(**batch).loss
                labels = batch.pop("labels")
                return alignment_loss(model(**batch).scores, labels, model.config)

        return loss

    def _plain(self, plain: PlainModel, stage: int) -> Callable[[], torch.Tensor]:
        def loss() -> torch.Tensor:
            if stage == 1:
                return plain.caption_loss(self.audio, self.captions)
            scores = plain.scores(self.audio, self.captions)
            return alignment_loss(scores, self.labels.to(scores.device), plain.model.config)

        return loss

    def _optimizer(self, weights: list, plain: bool) -> torch.optim.Optimizer:
        optimizer = plain_adamw(weights, 0.0) if plain else torch.optim.AdamW(weights, lr=0.0, weight_decay=0.01, fused=True)
        self.state = optimizer.state = optimizer.state if self.state is None else self.state
        return optimizer

    def steps(self, stage: int, language_model: bool = True, rows: bool = False) -> dict[str, Step]:
        """
        Args:
            stage: 1 captions, 2 ranks by cached states, 3 ranks under SpecAugment, for which the encoder runs in every step.
            language_model: Whether it is trained.
            rows: Whether to add a third way, which trains the special tokens' embeddings only.
        """
        model = captioner_of(self.model) if stage == 1 else twin(self.model)
        masks = (15, 30) if stage == 3 else (0, 0)
        model.config.freq_mask_width, model.config.time_mask_width = masks
        plain = PlainModel(model, self.bench.processor)
        trained = trainable(model, language_model)
        steps = {
            "baseline": Step(plain.model, self._plain(plain, stage), trained, self._optimizer(trained, plain=True)),
            "ours": Step(model, self._ours(model, stage), trained, self._optimizer(trained, plain=False)),
        }
        if rows:
            sparing = twin(model)
            train_token_rows(sparing, special_token_ids(model.config))
            table_of_tokens = sparing.get_input_embeddings().weight
            few = [weight for weight in trainable(sparing) if weight is not table_of_tokens]
            loss = self._ours(sparing, stage)
            steps["ours, token rows"] = Step(sparing, loss, few, self._optimizer(few, plain=False))
        return steps


def training(bench: Bench) -> str:
    """Samples a second of the three stages, the first epoch's encoding apart."""
    work = Training(bench, bench.model, BATCH)
    kinds = {
        "1, captioning": work.steps(1),
        "2, pseudo-labels": work.steps(2, rows=True),
        "2, language model frozen": work.steps(2, language_model=False),
        "3, ratings, SpecAugment": work.steps(3),
    }
    rows, ratios, optimizer = [], {}, {}
    for kind, steps in kinds.items():
        first = {}
        for name, step in steps.items():  # this also makes the optimizer's state
            first[name] = step.gradients()
            step.step()
        parts = {(name, part): getattr(step, part) for name, step in steps.items() for part in ("gradients", "step")}
        measured = interleaved(parts, bench.repeats)
        total = {
            name: [sum(getattr(measured[name, part], clock) for part in ("gradients", "step")) for clock in ("wall", "cpu")]
            for name in steps
        }
        for name, (wall, cpu) in total.items():
            (loss, norm), (plain_loss, plain_norm) = first[name], first["baseline"]
            apart = max(abs(loss - plain_loss), 0.0 if name == "ours, token rows" else abs(norm / plain_norm - 1))
            difference = bench.check(f"stage {kind}, {name}", apart)
            ratios[kind, name] = total["baseline"][1] / cpu
            if name != "baseline":
                bench.ratios[f"stage {kind}{name.removeprefix('ours')}"] = ratios[kind, name]
            optimizer[kind, name] = measured[name, "step"]
            costs = [BATCH / wall, cpu / BATCH, optimizer[kind, name].cpu]
            rows.append([kind, name, *costs, ratios[kind, name], total["baseline"][0] / wall, difference])
    header = [
        "stage",
        "",
        "samples/s",
        "CPU s/sample",
        "of a step, optimizer CPU s",
        "ratio CPU",
        "ratio wall",
        "difference",
    ]
    kind = "2, pseudo-labels"
    times = optimizer[kind, "baseline"].cpu / optimizer[kind, "ours, token rows"].cpu
    return "\n\n".join(
        [
            f"Steps on {BATCH} pairs in float32, as in every epoch after the first: ours reads the encoder's "
            "outputs (in stage 3 the fbank) from the cache and uses fused AdamW, the baseline decodes and encodes anew. "
            "Token rows: with `--freeze-token-embeddings true`. Difference: the larger of the losses' and the relative one of "
            "the gradients' norms.",
            table(header, rows),
            "\n".join(
                [
                    target("CPU time with the language model trained", ratios[kind, "ours"], 1.35, "x"),
                    target("the same, token rows", ratios[kind, "ours, token rows"], 1.35, "x"),
                    target("CPU time with it frozen", ratios["2, language model frozen", "ours"], 1.65, "x"),
                    target("optimizer step, CPU time, token rows", times, 10, "x"),
                ]
            ),
        ]
    )
