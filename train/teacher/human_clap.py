"""Human-CLAP: a CLAP fine-tuned on ratings, the teacher of stage 2.

`xacle train teacher --config FILE.yaml [--any-argument ...]`

With `c_ij` the cosine of sound i and caption j of the N pairs of the global batch, `w_i` the rating of pair i divided by 10,
`y_i` the cosine it should have, and `s_a`, `s_t` the model's own logit scales, the loss is a weighted sum of

    wSCE   = -1/2N sum_i w_i (log softmax_j(s_a c_ij)[i] + log softmax_j(s_t c_ji)[i])
    MAE    = 1/N sum_i |c_ii - y_i|
    MSE    = 1/N sum_i (c_ii - y_i)^2
    margin = 1/2N^2 sum_ij max(0, |(c_ii - c_jj) - (y_i - y_j)| - margin)

wSCE + MAE is Human-CLAP (arXiv 2506.23553), MSE + margin SPO-CLAPScore (arXiv 2601.02900). Human-CLAP's code is not public:
that a weight multiplies both directions of its pair, the division by N instead of the sum of the weights, `y = w`, equal
weights of the two terms and logit scales that are trained are readings of a symmetric cross-entropy weighted by the normalized
score. As in CLIP, a caption that two pairs of a batch share counts as wrong for the other's sound. SPO compares 10 times the
cosine with the rating, both in units of 3.0 points: hence `y = rating / 10`, unless `cosine_of_zero` says otherwise, and the
weights named in configs/teacher.yaml.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from xacle.clap.encoder import ClapEncoder, ClapFrontEnd
from xacle.clap.m2d_modeling import MAX_LOGIT_SCALE
from xacle.publish.trainer_mixin import check_license
from xacle.train.arguments import CONFIGS, DataArguments, ListenerArguments, parse_arguments
from xacle.train.batches import decodable_datasets, distinct_clips
from xacle.train.run import finish, run_script, run_training
from xacle.train.run_record import RunRecord
from xacle.train.set_up import read_tables, set_up
from xacle.train.trainer import XacleTrainer, compute_metrics, gather_rows

MAX_RATING = 10.0
PROJECTION_PREFIXES = {
    "clap": ("audio_projection.", "text_projection.", "logit_scale"),
    "m2d_clap": ("audio_model.projection.", "logit_scale"),  # its captions have none
}
# Clips of 10 s never reach the fusion of longer ones, and batches are too small and too different from process to process for
# new statistics of the input's mel bins.
NEVER_TRAINED = ("fusion_model", "mel_conv2d", "batch_norm")


@dataclass
class TeacherArguments:
    """The CLAP to fine-tune and the terms of its loss (see the module's description)."""

    _argument_group_name = "teacher"

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a ClapModel (laion/clap-htsat-fused) or a converted M2D-CLAP."}
    )
    train_parameters: str = field(
        default="all",
        metadata={
            "help": "all, or only the projections into the common space and the logit scales.",
            "choices": ["all", "projections"],
        },
    )
    wsce_weight: float = field(default=1.0, metadata={"help": "Weight of the weighted symmetric cross-entropy."})
    mae_weight: float = field(default=1.0, metadata={"help": "Weight of the mean absolute error."})
    mse_weight: float = field(default=0.0, metadata={"help": "Weight of the mean squared error."})
    margin_weight: float = field(default=0.0, metadata={"help": "Weight of the pairwise margin term."})
    margin: float = field(default=0.03, metadata={"help": "Error of a difference of two cosines that costs nothing."})
    cosine_of_zero: float = field(
        default=0.0,
        metadata={"help": "The cosine a rating of 0 should have; that of 10 is 1. With -1, ratings are 5 + 5 * cosine."},
    )

    def __post_init__(self):
        weights = {name: getattr(self, name) for name in ("wsce_weight", "mae_weight", "mse_weight", "margin_weight")}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"the terms' weights must not be negative, and one of them positive: got {weights}")
        if self.train_parameters not in ("all", "projections"):
            raise ValueError(f"train_parameters must be 'all' or 'projections', got {self.train_parameters!r}")
        if not -1 <= self.cosine_of_zero < 1 or self.margin < 0:
            raise ValueError(
                "cosine_of_zero must be from -1 to below 1 and margin not negative, got "
                f"{self.cosine_of_zero} and {self.margin}"
            )


def human_clap_loss(
    audio: torch.Tensor,
    text: torch.Tensor,
    ratings: torch.Tensor,
    logit_scales: tuple[torch.Tensor, torch.Tensor],
    arguments: TeacherArguments,
) -> torch.Tensor:
    """The loss of a batch of pairs.

    Args:
        audio, text: Embeddings of length 1, `[pairs, embedding size]`.
        ratings: `[pairs]`, 0 to 10.
        logit_scales: What cosines are multiplied by in softmaxes over captions and over sounds.
    """
    weight = (ratings / MAX_RATING).clamp(0.0, 1.0)  # standardized ratings can leave their scale
    target = arguments.cosine_of_zero + (1.0 - arguments.cosine_of_zero) * ratings / MAX_RATING
    cosine = (audio * text).sum(dim=-1)
    loss = cosine.new_zeros(())
    if arguments.wsce_weight:
        every = audio @ text.T
        own = torch.arange(len(every), device=every.device)
        over_captions = F.cross_entropy(logit_scales[0] * every, own, reduction="none")
        over_sounds = F.cross_entropy(logit_scales[1] * every.T, own, reduction="none")
        loss = loss + arguments.wsce_weight * (weight * (over_captions + over_sounds)).mean() / 2
    if arguments.mae_weight:
        loss = loss + arguments.mae_weight * F.l1_loss(cosine, target)
    if arguments.mse_weight:
        loss = loss + arguments.mse_weight * F.mse_loss(cosine, target)
    if arguments.margin_weight:
        error = cosine - target
        excess = (error[:, None] - error).abs() - arguments.margin
        loss = loss + arguments.margin_weight * excess.clamp(min=0.0).mean() / 2
    return loss


def choose_parameters(model: PreTrainedModel, arguments: TeacherArguments) -> None:
    """Set which parameters of a CLAP are trained."""
    projections = PROJECTION_PREFIXES[model.config.model_type]
    for name, parameter in model.named_parameters():
        if name.startswith("logit_scale"):
            parameter.requires_grad = arguments.wsce_weight > 0
        elif arguments.train_parameters == "projections":
            parameter.requires_grad = name.startswith(projections)
        else:
            parameter.requires_grad = not any(part in NEVER_TRAINED for part in name.split("."))


class TeacherCollator:
    """Examples of a [`PairDataset`] -> inputs of a CLAP and `labels`; a clip that occurs twice is decoded and encoded once."""

    def __init__(self, front_end: ClapFrontEnd):
        self.front_end = front_end

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        clips, audio_index = distinct_clips(examples)
        return {
            **self.front_end.text_inputs([example["text"] for example in examples]),
            **self.front_end.audio_inputs([self.front_end.load(clip["audio"]) for clip in clips]),
            "audio_index": audio_index,
            "labels": torch.tensor([example["score"] for example in examples]),
        }


class HumanClapTrainer(XacleTrainer):
    """
    Fine-tunes a CLAP on the global batch, all processes' pairs together.

    Evaluation predicts ratings on the scale that `cosine_of_zero` gives cosines, and reports the metrics and no loss. Parts
    without trained parameters stay in evaluation mode: no dropout, no new statistics.
    """

    loss_is_scaled_for_ga = False

    def __init__(self, *args, teacher_arguments: TeacherArguments, **kwargs):
        super().__init__(*args, compute_metrics=compute_metrics, **kwargs)
        self.teacher_arguments = teacher_arguments
        own = [(module, list(module.parameters())) for module in self.model.modules()]
        self.frozen = [module for module, owned in own if owned and not any(weight.requires_grad for weight in owned)]

    def embed(self, model, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The embeddings of each pair's sound and caption."""
        audio_index = inputs.pop("audio_index")
        outputs = model(**inputs)
        audio, text = (F.normalize(embeds.float(), dim=-1) for embeds in (outputs.audio_embeds, outputs.text_embeds))
        return audio[audio_index], text

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        for module in self.frozen:
            module.eval()
        ratings = inputs.pop("labels")
        audio, text = self.embed(model, inputs)
        if self.args.world_size > 1:
            audio, text, ratings = gather_rows(audio), gather_rows(text), gather_rows(ratings)
        network = self.accelerator.unwrap_model(model)
        is_clap = network.config.model_type == "clap"
        log_scales = (network.logit_scale_a, network.logit_scale_t) if is_clap else (network.logit_scale, network.logit_scale)
        scales = tuple(scale.clamp(0.0, MAX_LOGIT_SCALE).exp() for scale in log_scales)
        loss = human_clap_loss(audio, text, ratings, scales, self.teacher_arguments)
        return (loss, {"audio_embeds": audio, "text_embeds": text}) if return_outputs else loss

    @torch.no_grad()
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        audio, text = self.embed(model, inputs)
        zero = self.teacher_arguments.cosine_of_zero
        return None, MAX_RATING * ((audio * text).sum(dim=-1) - zero) / (1.0 - zero), labels


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fine-tune a CLAP on a table with `average_score`, or `score` and `listener_id`; save it, with its processor, as it was
    loaded.

    Returns:
        The validation metrics of the saved model (`eval_SRCC`...); empty without validation pairs.

    Raises:
        FileNotFoundError, ValueError: for a model, table or argument that cannot be used; see also [`read_table`].
    """
    arguments = parse_arguments(argv, CONFIGS / "teacher.yaml", TeacherArguments, DataArguments, ListenerArguments)
    teacher_arguments, data, listeners, training = arguments
    if teacher_arguments.model_name_or_path is None:
        raise ValueError("pass --model-name-or-path, the CLAP to fine-tune, e.g. laion/clap-htsat-fused")
    checkpoint = set_up(training, data)
    tables = read_tables("rating", data, training, listeners)

    teacher = ClapEncoder.from_pretrained(teacher_arguments.model_name_or_path, device="cpu")
    check_license(teacher.model.config, training)
    # A teacher's inputs are not cached, but damaged clips are reported before any training.
    datasets = decodable_datasets(tables, data, training, load=teacher.front_end.load)

    choose_parameters(teacher.model, teacher_arguments)
    trainer = HumanClapTrainer(
        teacher_arguments=teacher_arguments,
        model=teacher.model,
        args=training,
        data_collator=TeacherCollator(teacher.front_end),
        train_dataset=datasets["train"],
        eval_dataset=datasets.get("validation"),
        processing_class=teacher.processor,
    )
    run_training(trainer, RunRecord("teacher", arguments, datasets), checkpoint)
    return finish(trainer)


if __name__ == "__main__":
    run_script(main)
