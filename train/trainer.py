"""`AlignmentTrainer` for stages 2 and 3, `CaptioningTrainer` for stage 1."""

import copy
from collections.abc import Callable
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list
from transformers import EvalPrediction, Trainer, TrainingArguments

from xacle.modeling_xacle import alignment_loss
from xacle.publish.trainer_mixin import PublishingMixin
from xacle.scoring.metrics import alignment_metrics
from xacle.train.batches import PairCollator
from xacle.train.data import check_pairs
from xacle.train.lora_and_freezing import TokenRowsEmbedding

SEED_SPACING = 1_000_003  # between the orders of data of two seeds: more epochs than any run has


class XacleTrainer(PublishingMixin, Trainer):
    """
    What all trainers share.

    Args:
        train_dataset, eval_dataset: `datasets.Dataset`s, lists of dicts or [`PairDataset`]s; see [`PairCollator`] for what
            they hold.
        processing_class: The model's processor; the collator is made of it unless there is another.

    The other arguments are `Trainer`'s.
    """

    task = "scoring"

    def __init__(
        self,
        model,
        args: TrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        **kwargs,
    ):
        args = TrainingArguments("trainer_output") if args is None else copy.copy(args)
        args.remove_unused_columns = False  # the collator reads sounds and captions, whatever the model's arguments
        args.label_names = ["labels"]
        if args.data_seed is None:
            # One order for all processes. Epoch n is shuffled by data_seed + n: seeds side by side would share their epochs.
            args.data_seed = SEED_SPACING * args.seed
        self.head_learning_rate = getattr(args, "head_learning_rate", None)  # not among transformers' own arguments
        if data_collator is None:
            if processing_class is None:
                raise ValueError("pass processing_class, the model's processor: batches are made by it")
            data_collator = PairCollator(processing_class, self.task, static_shapes=args.torch_compile)
            train_dataset = check_pairs(train_dataset, "train_dataset", self.task)
            eval_dataset = check_pairs(eval_dataset, "eval_dataset", self.task)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"one process sees {self.args.n_gpu} GPUs, which would split every list among them: start one process a GPU "
                "(`accelerate launch` or `torchrun --nproc_per_node`), or choose one with CUDA_VISIBLE_DEVICES=0"
            )
        if self.is_fsdp_enabled and hasattr(self.model, "peft_config"):
            raise ValueError("LoRA adapters cannot be merged from FSDP's shards: use DDP, for which they save enough memory")
        if self.is_fsdp_enabled and isinstance(self.model.get_input_embeddings(), TokenRowsEmbedding):
            raise ValueError("FSDP's shards have no single token rows: leave out --freeze-token-embeddings, or use DDP")

    def create_optimizer(self, model=None):
        """Trainer's optimizer; with `head_learning_rate`, the score head's parameters are groups of their own."""
        created = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if created and self.head_learning_rate is not None:
            named = (self.model if model is None else model).named_parameters()
            head = {parameter for name, parameter in named if "score_head." in name}
            if not head:
                raise ValueError("--head-learning-rate is for the score head, which this model does not have")
            for group in list(optimizer.param_groups):
                chosen = [parameter for parameter in group["params"] if parameter in head]
                group["params"] = [parameter for parameter in group["params"] if parameter not in head]
                optimizer.add_param_group({**group, "params": chosen, "lr": self.head_learning_rate})
        return optimizer

    def get_eval_dataloader(self, eval_dataset=None):
        with self._keep_all_rows():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        with self._keep_all_rows():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _keep_all_rows(self):
        """Trainer applies `dataloader_drop_last` to evaluation as well, which would leave pairs out of the metrics."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """SRCC, LCC, KTAU and MSE of predicted against given ratings."""
    return alignment_metrics(prediction.predictions, prediction.label_ids)


class AlignmentTrainer(XacleTrainer):
    """
    Learns to rank: ListNet over the global batch, all processes' pairs together.

    The list is `per_device_train_batch_size * processes` pairs. Gradient accumulation averages the losses of several such
    lists; it does not make them longer. Evaluation reports the metrics and no loss, which would depend on how the
    validation pairs fall into batches.

    ```python
    pairs = datasets.Dataset.from_dict({"audio": ["dog.wav", "rain.wav"], "text": ["A dog barks", "Wind"], "score": [9, 2]})
    AlignmentTrainer(model, args, train_dataset=pairs, processing_class=processor).train()
    ```
    """

    loss_is_scaled_for_ga = False  # a mean over one list: accumulation divides by the number of lists

    def __init__(self, model, args: TrainingArguments | None = None, **kwargs):
        super().__init__(model, args, compute_metrics=compute_metrics, **kwargs)
        pairs = self.train_dataset
        if hasattr(pairs, "__len__") and len(pairs) % (self.args.train_batch_size * self.args.world_size) == 1:
            self.args.dataloader_drop_last = True  # the last list of an epoch would be one pair, which ranks nothing

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        scores = outputs.scores
        if self.args.world_size > 1:
            scores, labels = gather_rows(scores), gather_rows(labels)
        loss = alignment_loss(scores, labels, self.model.config)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        labels = inputs.pop("labels", None)
        _, scores, _ = super().prediction_step(model, inputs, False, ignore_keys)
        return None, scores, None if labels is None else labels.to(scores.device)


class CaptioningTrainer(XacleTrainer):
    """
    Learns to caption: next-token loss on the captions.

    Args:
        evaluate_captions: Called with the model after each evaluation; returns metrics of the captions it writes.
    """

    task = "captioning"

    def __init__(self, *args, evaluate_captions: Callable[[torch.nn.Module], dict[str, float]] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.evaluate_captions = evaluate_captions
        if self.is_fsdp_enabled and evaluate_captions is not None:
            raise ValueError(
                "captions cannot be written from FSDP's shards: leave out --rating-file, use `xacle caption` later"
            )

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.evaluate_captions is not None:
            model = self.accelerator.unwrap_model(self.model)
            found = broadcast_object_list([self.evaluate_captions(model) if self.is_world_process_zero() else None])[0]
            found = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
            self.log(found)
            metrics.update(found)
        return metrics


# --- The list of all processes -------------------------------------------------------------------------------------------


class _GatherRows(torch.autograd.Function):
    """Backward: what all processes say about this process' rows, summed."""

    @staticmethod
    def forward(ctx, rows):
        ctx.rows = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[dist.get_rank() * ctx.rows :][: ctx.rows]


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """All processes' rows `[processes * rows, ...]`, in their order, for a loss of the global batch; differentiable.

    DDP averages gradients over processes. Each computes the whole batch's loss, and the backward pass sums what all of them say
    about a row: the average is the gradient of one process with the whole batch. (Every process must have as many rows.)
    """
    return _GatherRows.apply(rows)
