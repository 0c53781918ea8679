"""`AlignmentTrainer` for stages 2 and 3, `CaptioningTrainer` for stage 1."""

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list
from huggingface_hub import CommitInfo
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from xacle.modeling_xacle import alignment_loss
from xacle.publish.push import create_repo, prepare, upload
from xacle.scoring.metrics import alignment_metrics
from xacle.train.token_rows import TokenRowsEmbedding

logger = logging.get_logger(__name__)


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


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """SRCC, LCC, KTAU and MSE of predicted against given ratings."""
    return alignment_metrics(prediction.predictions, prediction.label_ids)


class XacleTrainer(Trainer):
    """What all trainers share."""

    record = None  # a `RunRecord`, if the run keeps one

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"one process sees {self.args.n_gpu} GPUs, which would split every list among them: start one process a GPU "
                "(`accelerate launch` or `torchrun --nproc_per_node`), or choose one with CUDA_VISIBLE_DEVICES=0"
            )
        if self.is_fsdp_enabled and hasattr(self.model, "peft_config"):
            raise ValueError("LoRA adapters cannot be merged from FSDP's shards: use DDP, which they leave room for")
        if self.is_fsdp_enabled and isinstance(self.model.get_input_embeddings(), TokenRowsEmbedding):
            raise ValueError("FSDP's shards have no single token rows: leave out --freeze_token_embeddings, or use DDP")

    def init_hf_repo(self, token=None, private=None):
        if self.is_world_process_zero():
            name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
            private = self.args.hub_private_repo if private is None else private
            self.hub_model_id = create_repo(name, private, token or self.args.hub_token)

    def create_model_card(self, *args, **kwargs) -> None:
        """Write the model card of [`render_card`] instead of a table of the training's course."""
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            folder.joinpath("README.md").write_text(self._publication(folder).card, encoding="utf-8")

    def push_to_hub(self, commit_message="End of training", blocking=True, token=None, revision=None, private=None, **kwargs):
        """Save the model and upload what `xacle push` would: no more than the model, and nothing less."""
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        return self.upload_folder(self.args.output_dir, commit_message, token, revision)

    def _push_from_checkpoint(self, checkpoint_folder):
        if self.args.hub_strategy == HubStrategy.EVERY_SAVE:
            if self.record is not None and self.is_world_process_zero():
                self.record.write(checkpoint_folder)  # the card is made of it
            try:
                self.upload_folder(checkpoint_folder, f"Training in progress, step {self.state.global_step}")
            except (OSError, ValueError) as error:  # not worth the run; its end is pushed again
                logger.warning(f"checkpoint not pushed: {error}")

    def _publication(self, folder):
        return prepare(
            folder,
            self.hub_model_id or Path(self.args.output_dir).absolute().name,
            getattr(self.args, "hub_license", None),  # which transformers' own TrainingArguments lack
            getattr(self.args, "accept_license", False),
        )

    def upload_folder(self, folder: str | Path, message: str, token=None, revision=None) -> CommitInfo | None:
        """Upload a model folder of this run, by the process that may: `xacle push` with the run's arguments.

        Raises:
            OSError, ValueError: if it fails; the former say where the model is.
        """
        if not self.is_world_process_zero():
            return None
        revision, token = revision or self.args.hub_revision, token or self.args.hub_token
        try:
            commit = upload(self._publication(folder), None, revision, message, token)
        except OSError as error:
            raise OSError(f"{error}. The model is in '{folder}': publish it with `xacle push`") from error
        logger.info(f"pushed: {commit.commit_url}")
        return commit

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


class AlignmentTrainer(XacleTrainer):
    """
    Learns to rank: ListNet over the global batch, all processes' pairs together.

    The list is `per_device_train_batch_size * processes` pairs. Gradient accumulation averages the losses of several such
    lists; it does not make them longer. Evaluation reports the metrics and no loss, which would depend on how the
    validation pairs fall into batches.
    """

    loss_is_scaled_for_ga = False  # a mean over one list: accumulation divides by the number of lists

    def __init__(self, *args, **kwargs):
        super().__init__(*args, compute_metrics=compute_metrics, **kwargs)

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

    def __init__(self, *args, evaluate_captions: Callable[[torch.nn.Module], dict[str, float]] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.evaluate_captions = evaluate_captions
        if self.is_fsdp_enabled and evaluate_captions is not None:
            raise ValueError(
                "captions cannot be written from FSDP's shards: leave out --rating_file, use `xacle caption` later"
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
