"""Token embeddings of which only a few rows are trained."""

import torch
from torch import nn


class TokenRowsEmbedding(nn.Embedding):
    """
    Stands for a model's token embeddings and trains the given rows of them alone.

    A dense gradient of 136M rows, its norm and AdamW's two averages cost more than the rest of an optimiser step; rows whose
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


def train_token_rows(model, rows: list[int]) -> None:
    """Freeze `model`'s token embeddings but for the given rows."""
    model.set_input_embeddings(TokenRowsEmbedding(model.get_input_embeddings(), rows))
