"""What is compared against: the same weights used as the authors' released code uses them.

One clip a pair, decoded, turned into fbank and encoded every time, also in every epoch; eager attention under masks that
mask nothing; a key-value cache that nobody reads; float32; AdamW without fusing.
"""

import copy
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from xacle.audio_xacle import SAMPLING_RATE
from xacle.processing_xacle import XacleProcessor


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of `model` that shares its weights."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


class PlainModel:
    """
    The plain way from sounds and captions to scores, or to the loss of stage 1.

    Args:
        model: A scorer or captioner; its weights are shared.
        processor: Its processor.
    """

    def __init__(self, model: PreTrainedModel, processor: XacleProcessor):
        self.model, self.processor = twin(model), processor
        self.model.set_attn_implementation("eager")

    def encode(self, audio: list[Path]) -> torch.Tensor:
        """Sounds -> the language model's input `[sounds, 100, 896]`."""
        extractor = self.processor.feature_extractor
        fbank = [extractor(extractor.fetch_audio(path), SAMPLING_RATE, return_tensors="pt")["input_features"] for path in audio]
        fbank = torch.cat(fbank).to(self.model.device)
        no_padding = torch.ones(fbank.shape[:2], dtype=torch.long, device=fbank.device)
        return self.model.get_audio_features(fbank, attention_mask=no_padding).pooler_output

    def scores(self, audio: list[Path], captions: list[str]) -> torch.Tensor:
        """Ratings `[pairs]` of one batch."""
        ids = self.processor(text=captions)["input_ids"].to(self.model.device)
        mask = (ids != self.model.config.pad_token_id).long()
        states = self.model.model(ids, audio_embeds=self.encode(audio), attention_mask=mask, use_cache=True).last_hidden_state
        position = self.model.score_positions(ids, None, mask)
        logits = self.model.score_head(states[torch.arange(len(ids), device=ids.device), position])
        return self.model.config.score_shift + self.model.config.score_scale * logits.squeeze(-1)

    def caption_loss(self, audio: list[Path], captions: list[str]) -> torch.Tensor:
        """Next-token loss of one batch."""
        inputs = self.processor(text=captions, task="captioning").to(self.model.device)
        return self.model(**inputs, audio_embeds=self.encode(audio), use_cache=True).loss

    @torch.no_grad()
    def score(self, audio: list[Path], captions: list[str], batch_size: int = 16) -> np.ndarray:
        """Ratings `[pairs]`, batch by batch in the order given."""
        self.model.eval()
        starts = range(0, len(captions), batch_size)
        batches = [self.scores(audio[start : start + batch_size], captions[start : start + batch_size]) for start in starts]
        return torch.cat(batches).cpu().numpy()


def plain_adamw(parameters: list[torch.nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """AdamW as a loop over the weights."""
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, foreach=False, fused=False)
