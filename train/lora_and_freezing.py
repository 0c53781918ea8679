"""Which weights are trained: parts of the model frozen, a few rows of the token embeddings alone, LoRA adapters."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from xacle.configuration_xacle import XacleConfig
from xacle.train.arguments import ModelArguments


def check_lora(arguments: ModelArguments, freeze_audio_encoder: bool) -> None:
    """Raise `ValueError` for LoRA together with options that it excludes."""
    if not arguments.lora_r:
        return
    if arguments.model_name_or_path is None and arguments.lora_output == "adapter":
        raise ValueError("--lora-output adapter leaves a new model's other weights nowhere: choose merged")
    if arguments.freeze_language_model or arguments.freeze_token_embeddings or not freeze_audio_encoder:
        raise ValueError(
            "LoRA decides what is trained: --lora-r goes with none of --freeze-language-model, --freeze-token-embeddings and "
            "--freeze-audio-encoder false"
        )


def freeze(model: PreTrainedModel, arguments: ModelArguments) -> None:
    """Freeze the parts that `arguments` name. (The audio encoder is frozen by the model itself, from its configuration.)"""
    if not model.config.freeze_audio_encoder:
        # Processes that skip different layers wait for each other's gradients forever.
        model.config.audio_config.layerdrop = model.base_model.audio_tower.config.layerdrop = 0.0
    if arguments.freeze_language_model:
        model.base_model.language_model.requires_grad_(False)
    elif arguments.freeze_token_embeddings:
        train_token_rows(model, special_token_ids(model.config))


def special_token_ids(config: XacleConfig) -> list[int]:
    return [getattr(config, name) for name in XacleConfig.special_token_names]


def add_lora(model: PreTrainedModel, arguments: ModelArguments):
    """Wrap the model in a `PeftModel`: adapters in the language model; projector, head and special-token rows trained whole.

    Without `--lora-r`, the model itself.
    """
    if not arguments.lora_r:
        return model
    from peft import LoraConfig, get_peft_model

    names = {path for path, _ in model.named_modules()}
    embeddings = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    config = LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha or 2 * arguments.lora_r,
        lora_dropout=arguments.lora_dropout,
        target_modules=rf".*language_model\..*\.({'|'.join(arguments.lora_target_modules)})",
        modules_to_save=[
            whole
            for whole in ("multi_modal_projector", "score_head")
            if any(name.rpartition(".")[2] == whole for name in names)
        ],
        trainable_token_indices={embeddings: special_token_ids(model.config)},
    )
    adapted = get_peft_model(model, config)
    base = arguments.model_name_or_path
    if base is not None and Path(base).is_dir():  # the adapter must find its base from anywhere
        adapted.peft_config["default"].base_model_name_or_path = str(Path(base).resolve())
    return adapted


class TokenRowsEmbedding(nn.Embedding):
    """
    Stands for a model's token embeddings and trains the given rows of them alone.

    A dense gradient of 136M numbers, its norm and AdamW's two averages cost more than the rest of an optimizer step; rows whose
    tokens do not occur would shrink by weight decay besides. Checkpoints look as ever: the rows are written into the weight.

    Args:
        embedding: What to stand for; it shares its weight (and whatever is tied to that), which is frozen.
        rows: Ids of the tokens to train.
    """

    def __init__(self, embedding: nn.Embedding, rows: list[int]):
        super().__init__(*embedding.weight.shape, padding_idx=embedding.padding_idx, device="meta")
        self.weight = embedding.weight.requires_grad_(False)
        self.register_buffer("row_ids", torch.tensor(rows, device=self.weight.device), persistent=False)
        self.rows = nn.Parameter(self.weight[self.row_ids].clone())

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        self.write_rows()  # a tied head sees them as well
        row = input_ids.unsqueeze(-1) == self.row_ids  # [..., rows]
        return torch.where(row.any(-1, keepdim=True), self.rows[row.int().argmax(-1)], super().forward(input_ids))

    @torch.no_grad()
    def write_rows(self) -> None:
        self.weight[self.row_ids] = self.rows.to(self.weight.dtype)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        self.write_rows()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[f"{prefix}rows"]

    def _load_from_state_dict(self, state_dict, prefix, *args):
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None:
            state_dict[f"{prefix}rows"] = weight[self.row_ids.to(weight.device)]
        super()._load_from_state_dict(state_dict, prefix, *args)


def train_token_rows(model: PreTrainedModel, rows: list[int]) -> None:
    """Freeze `model`'s token embeddings but for the given rows."""
    model.set_input_embeddings(TokenRowsEmbedding(model.get_input_embeddings(), rows))
