"""The XACLE scorer (arXiv 2602.00604): fbank and caption -> how well they match, or fbank -> caption.

fbank [clips, 998, 128] --BEATs, frozen--> [clips, 496, 768] --pool--> [clips, 100, 768] --projector--> [clips, 100, 896]
caption <|AUDIO_START|> <|AUDIO|>x100 <|AUDIO_END|> <|SCORE|> --language model--> state at <|SCORE|> --head--> logit
rating (0-10) = score_shift + score_scale * logit
"""

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import ModelOutput, can_return_tuple, logging, torch_compilable_check

from .configuration_xacle import XacleConfig
from .modeling_beats import BeatsModel

logger = logging.get_logger(__name__)

RATING_CENTER = RATING_HALF_RANGE = 5.0  # people rate 0-10; the ListNet loss sees ratings on [-1, 1]


@dataclass
class XacleScorerOutput(ModelOutput):
    """
    Output of [`XacleForAlignmentScoring`].

    Args:
        loss: ListNet loss of the batch, if `labels` are passed.
        logits: Output of the score head `[batch, 1]`, float32.
        scores: Ratings on the 0-10 scale `[batch]`, `config.score_shift + config.score_scale * logits`. Not clipped.
        hidden_states: The language model's states, if asked for.
        attentions: The language model's attention weights, if asked for (eager attention only).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def listnet_loss(
    predictions: torch.Tensor,
    targets: torch.Tensor,
    temperature: float = 1.0,
    prediction_temperature: float | None = None,
) -> torch.Tensor:
    """ListNet: cross-entropy between the softmax of the targets and the softmax of the predictions over one list.

    Args:
        predictions, targets: `[list]`, on the same scale.
        temperature: Divides the targets.
        prediction_temperature: Divides the predictions; `temperature` if `None`.

    Raises:
        ValueError: for a list of one, which has the same loss, zero, whatever is predicted.
    """
    if predictions.shape != targets.shape or predictions.ndim != 1:
        raise ValueError(f"predictions {list(predictions.shape)} and targets {list(targets.shape)} must be two equal lists")
    if len(predictions) < 2:
        raise ValueError(
            "ListNet ranks the pairs of a batch against each other and cannot learn from a batch of one; use larger "
            "batches, and `dataloader_drop_last=True` if the last one is left with a single pair"
        )
    target_distribution = (targets.float() / temperature).softmax(-1)
    prediction_temperature = temperature if prediction_temperature is None else prediction_temperature
    return -(target_distribution * (predictions.float() / prediction_temperature).log_softmax(-1)).sum()


def alignment_loss(scores: torch.Tensor, labels: torch.Tensor, config: XacleConfig) -> torch.Tensor:
    """ListNet loss of ratings `[list]` on the 0-10 scale, as the paper's stages 2 and 3 use it (on [-1, 1])."""
    return listnet_loss(
        (scores - RATING_CENTER) / RATING_HALF_RANGE,
        (labels.float() - RATING_CENTER) / RATING_HALF_RANGE,
        config.listnet_temperature,
        config.listnet_prediction_temperature,
    )


def spec_augment(features: torch.Tensor, freq_mask_width: int, time_mask_width: int) -> torch.Tensor:
    """Zero one random band of mel bins and one random stretch of frames of every clip (arXiv 1904.08779).

    As in torchaudio, a mask is narrower than its parameter: its width is uniform in `[0, freq_mask_width)`. Zero is the
    mean of the normalized fbank.

    Args:
        features: `[clips, frames, mel bins]`.
    """
    for dim, max_width in ((1, time_mask_width), (2, freq_mask_width)):
        size = features.shape[dim]
        width, start = torch.rand(2, len(features), 1, device=features.device)
        width = width * min(max_width, size)
        first = (start * (size - width)).floor()
        position = torch.arange(size, device=features.device)
        masked = (position >= first) & (position < first + width.floor())  # [clips, size]
        features = features.masked_fill(masked.unsqueeze(3 - dim), 0.0)
    return features


class SwiGLUBlock(nn.Module):
    """Gated feed-forward block `[..., in_size] -> [..., out_size]`, optionally mixed with a linear map of its input.

    `fc1` holds the value and the gate matrix, in this order. The residual paths see the input before its LayerNorm.
    """

    def __init__(self, in_size: int, hidden_size: int, out_size: int, gated_residual: bool, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(in_size)
        self.fc1 = nn.Linear(in_size, 2 * hidden_size)
        self.fc2 = nn.Linear(hidden_size, out_size)
        self.dropout = nn.Dropout(dropout)
        self.residual_proj = nn.Linear(in_size, out_size) if gated_residual else None
        self.residual_gate = nn.Linear(in_size, out_size) if gated_residual else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        value, gate = self.fc1(self.norm(hidden_states)).chunk(2, dim=-1)
        output = self.fc2(self.dropout(value * nn.functional.silu(gate)))
        if self.residual_proj is None:
            return output
        mix = self.residual_gate(hidden_states).sigmoid()
        return mix * self.residual_proj(hidden_states) + (1.0 - mix) * output


class XacleSwiGLUProjector(nn.Module):
    """Pooled audio states `[clips, audio tokens, audio size]` -> `[clips, audio tokens, text size]`."""

    def __init__(self, config: XacleConfig):
        super().__init__()
        text_size = config.text_config.hidden_size
        in_sizes = [config.audio_config.hidden_size] + [text_size] * (config.projector_depth - 1)
        self.blocks = nn.ModuleList(
            SwiGLUBlock(
                in_size,
                config.projector_intermediate_size,
                text_size,
                config.projector_gated_residual,
                config.projector_dropout,
            )
            for in_size in in_sizes
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


class XacleQFormerProjector(nn.Module):
    """Learned queries that attend to the pooled audio states (BLIP-2's Q-Former, from transformers), then a linear map."""

    def __init__(self, config: XacleConfig):
        super().__init__()
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        audio_size = config.audio_config.hidden_size
        self.query = nn.Parameter(torch.zeros(1, config.num_audio_tokens, audio_size))
        self.qformer = Blip2QFormerModel._from_config(
            Blip2QFormerConfig(
                hidden_size=audio_size,
                encoder_hidden_size=audio_size,
                num_hidden_layers=config.projector_depth,
                num_attention_heads=config.audio_config.num_attention_heads,
                intermediate_size=config.projector_intermediate_size,
                hidden_dropout_prob=config.projector_dropout,
                attention_probs_dropout_prob=config.projector_dropout,
                cross_attention_frequency=1,
            ),
            attn_implementation=config._attn_implementation,
        )
        self.linear = nn.Linear(audio_size, config.text_config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        query = self.query.expand(len(hidden_states), -1, -1)
        return self.linear(self.qformer(query, encoder_hidden_states=hidden_states).last_hidden_state)


class XacleScoreHead(nn.Module):
    """State at `<|SCORE|>` `[batch, text size]` -> logit `[batch, 1]`.

    ReLU and dropout stand between hidden layers but not after the last one, as in the released head. It computes in float32
    whatever the model's dtype: bfloat16 has 128 values between two powers of two, and would tie much of a ranking.
    """

    def __init__(self, config: XacleConfig):
        super().__init__()
        sizes = [config.text_config.hidden_size, *config.score_head_hidden_sizes]
        self.hidden_layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.dropout = nn.Dropout(config.score_head_dropout)
        self.out_proj = nn.Linear(sizes[-1], 1)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        with torch.autocast(state.device.type, enabled=False):
            state = state.float()
            for index, layer in enumerate(self.hidden_layers):
                state = self._linear(layer, state if index == 0 else self.dropout(state.relu()))
            return self._linear(self.out_proj, state)

    @staticmethod
    def _linear(layer: nn.Linear, state: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(state, layer.weight.float(), layer.bias.float())


class XaclePreTrainedModel(PreTrainedModel):
    config: XacleConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["audio", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["BeatsLayer", "SwiGLUBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = True  # in the language model: {"text_config": "flash_attention_2", "audio_config": "sdpa"}
    _supports_attention_backend = True

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, XacleQFormerProjector):
            init.normal_(module.query, std=0.02)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """See `PreTrainedModel.from_pretrained`, which makes every parameter trainable: the encoder is frozen anew."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.base_model.freeze_audio_encoder()
        return loaded


class XacleModel(XaclePreTrainedModel):
    """Audio encoder, projector and language model without a head."""

    def __init__(self, config: XacleConfig):
        super().__init__(config)
        self.audio_tower = BeatsModel._from_config(config.audio_config)
        projector_class = XacleQFormerProjector if config.projector_type == "qformer" else XacleSwiGLUProjector
        self.multi_modal_projector = projector_class(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()
        self.freeze_audio_encoder()

    def freeze_audio_encoder(self) -> None:
        """Exclude the encoder from training if `config.freeze_audio_encoder` is set."""
        if self.config.freeze_audio_encoder:
            self.audio_tower.requires_grad_(False)

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def train(self, mode: bool = True):
        """Like `nn.Module.train`, but a frozen encoder stays in evaluation mode: no dropout, no skipped layers."""
        super().train(mode)
        if self.config.freeze_audio_encoder:
            self.audio_tower.eval()
        return self

    def _encode(self, input_features: torch.Tensor, **kwargs) -> tuple[BaseModelOutput, torch.Tensor]:
        """Fbank -> the encoder's output, and its states pooled to `[clips, num_audio_tokens, audio size]`."""
        if self.training and (self.config.freq_mask_width or self.config.time_mask_width):
            input_features = spec_augment(input_features, self.config.freq_mask_width, self.config.time_mask_width)
        frozen = self.config.freeze_audio_encoder
        # In its weights' dtype, under autocast too: the states that are cached, trained on and scored are the same.
        precision = torch.autocast(input_features.device.type, enabled=False) if frozen else nullcontext()
        with precision, torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            outputs = self.audio_tower(input_features, **{**kwargs, "return_dict": True})
            states = outputs.last_hidden_state
            if self.config.audio_pooling == "time":
                beats = self.config.audio_config
                states = states.unflatten(1, (-1, beats.num_mel_bins // beats.patch_size)).mean(dim=2)
            pooled = nn.functional.adaptive_avg_pool1d(states.transpose(1, 2), self.config.num_audio_tokens)
        return outputs, pooled.transpose(1, 2)

    def get_audio_states(self, input_features: torch.Tensor) -> torch.Tensor:
        """Encode and pool clips: fbank `[clips, frames, 128]` -> `audio_states` `[clips, num_audio_tokens, audio size]`.

        With a frozen encoder and without SpecAugment these never change: compute them once a clip and pass them to `forward`
        instead of the fbank. (In training, SpecAugment masks the fbank; given states are taken as they are.)
        """
        return self._encode(input_features)[1]

    @can_return_tuple
    def get_audio_features(self, input_features: torch.Tensor, **kwargs) -> tuple | BaseModelOutputWithPooling:
        """
        Returns:
            `last_hidden_state`: the encoder's states `[clips, tokens, audio size]`; `pooler_output`: the language model's
            audio inputs `[clips, num_audio_tokens, text size]`; `hidden_states` and `attentions` of the encoder, if asked for.
        """
        outputs, pooled = self._encode(input_features, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self._project(pooled),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _project(self, audio_states: torch.Tensor) -> torch.Tensor:
        weight = next(self.multi_modal_projector.parameters())
        return self.multi_modal_projector(audio_states.to(weight.dtype))

    def get_placeholder_mask(self, input_ids, inputs_embeds) -> torch.Tensor:
        """Where `<|AUDIO|>` stands, `[batch, tokens]`; found by its embedding if there are no `input_ids`."""
        if input_ids is not None:
            return input_ids == self.config.audio_token_id
        placeholder = torch.tensor(self.config.audio_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(placeholder)).all(-1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        audio_index: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> tuple | BaseModelOutputWithPast:
        """
        Args:
            input_ids: `[batch, tokens]` with `num_audio_tokens` placeholders a row, as [`XacleProcessor`] makes them.
            input_features: Normalized fbank of the clips `[clips, frames, 128]`.
            audio_states: Instead of the fbank, what `get_audio_states` returned `[clips, num_audio_tokens, audio size]`.
            audio_embeds: Instead of either, `get_audio_features(...).pooler_output` `[clips, num_audio_tokens, text size]`.
            audio_index: The clip of each row `[batch]`, for clips that occur in several rows. By default row i has clip i,
                and a single clip serves all rows.
            attention_mask: `[batch, tokens]`. Not needed for right-padded rows: attention is causal, so no state before
                the padding depends on it, and no mask is the fast path. Positions are counted without the padding.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of `input_ids` and `inputs_embeds`")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        if audio_embeds is None and audio_states is None and input_features is not None:
            audio_states = self.get_audio_states(input_features)
        audio = self._project(audio_states) if audio_embeds is None and audio_states is not None else audio_embeds
        if audio is not None:
            batch = len(inputs_embeds)
            if audio_index is not None:
                audio = audio[audio_index]
            elif len(audio) == 1:
                audio = audio.expand(batch, -1, -1)
            if len(audio) != batch:
                raise ValueError(f"got {len(audio)} clips for {batch} rows; pass `audio_index` for clips that rows share")
            placeholders = self.get_placeholder_mask(input_ids, inputs_embeds)
            torch_compilable_check(
                (placeholders.sum(-1) == self.config.num_audio_tokens).all(),
                f"each row needs {self.config.num_audio_tokens} <|AUDIO|> placeholders; use XacleProcessor",
            )
            audio = audio.to(inputs_embeds.device, inputs_embeds.dtype)
            inputs_embeds = inputs_embeds.masked_scatter(placeholders.unsqueeze(-1), audio)
        elif (
            input_ids is not None
            and past_key_values is None
            and not torch.compiler.is_compiling()
            and (input_ids == self.config.audio_token_id).any()
        ):
            logger.warning("rows with <|AUDIO|> placeholders came without a sound (`input_features` or `audio_states`)")

        # (`generate` with a static cache hands over finished masks, in a dict, and positions.)
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2 and position_ids is None:
            # Positions must not depend on padding, or a pair's score would depend on what it is batched with.
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]

        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **{**kwargs, "return_dict": True},
        )


class XacleForAlignmentScoring(XaclePreTrainedModel):
    """Rates how well a sound matches a caption (0-10). What `AutoModel.from_pretrained` returns."""

    # The loss is a mean over one list; Trainer must not rescale it for gradient accumulation.
    accepts_loss_kwargs = False
    _keep_in_fp32_modules_strict = {"score_head"}

    def __init__(self, config: XacleConfig):
        super().__init__(config)
        self.model = XacleModel(config)
        self.score_head = XacleScoreHead(config)
        self.post_init()

    def get_audio_states(self, input_features: torch.Tensor) -> torch.Tensor:
        """See [`XacleModel.get_audio_states`]."""
        return self.model.get_audio_states(input_features)

    def get_audio_features(self, input_features: torch.Tensor, **kwargs):
        """See [`XacleModel.get_audio_features`]."""
        return self.model.get_audio_features(input_features, **kwargs)

    def score_positions(self, input_ids, inputs_embeds, attention_mask) -> torch.Tensor:
        """Index of the state to score in each row, `[batch]`."""
        if input_ids is not None and self.config.score_pooling == "score_token":
            score_tokens = input_ids == self.config.score_token_id
            torch_compilable_check(
                (score_tokens.sum(-1) == 1).all(), "each row needs one <|SCORE|>; give XacleProcessor a `text` to score"
            )
            return score_tokens.int().argmax(-1)
        if attention_mask is not None:
            used = attention_mask
        elif input_ids is not None and self.config.pad_token_id is not None:
            used = input_ids != self.config.pad_token_id
        else:
            used = torch.ones((input_ids if input_ids is not None else inputs_embeds).shape[:2], device=self.device)
        return used.shape[1] - 1 - used.int().flip(-1).argmax(-1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        audio_index: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple | XacleScorerOutput:
        """
        Args:
            labels: Ratings on the 0-10 scale `[batch]`. The loss is ListNet over the batch, as in the paper's stages 2 and 3:
                both the labels and `scores` are mapped from 0-10 to [-1, 1] and compared as distributions over the batch.
            The other arguments are those of [`XacleModel.forward`].

        Raises:
            ValueError: if `labels` are given for a batch of one in training.
        """
        kwargs["use_cache"] = False  # one pass; a cache would only be filled and dropped
        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            audio_states=audio_states,
            audio_index=audio_index,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        states = outputs.last_hidden_state
        positions = self.score_positions(input_ids, inputs_embeds, attention_mask)
        rows = torch.arange(len(states), device=states.device)
        logits = self.score_head(states[rows, positions.to(states.device)])
        scores = self.config.score_shift + self.config.score_scale * logits.squeeze(-1)
        loss = None if labels is None else self._loss(scores, labels.to(scores.device).reshape(-1))
        return XacleScorerOutput(
            loss=loss,
            logits=logits,
            scores=scores,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if not self.training and len(scores) == 1:
            logger.warning_once("the ListNet loss of a batch of one is always zero: NaN is returned")
            return torch.full((), torch.nan, device=scores.device)
        return alignment_loss(scores, labels, self.config)


class XacleForConditionalGeneration(XaclePreTrainedModel, GenerationMixin):
    """Writes a caption for a sound: stage 1 of the training, sharing every weight name with the scorer."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: XacleConfig):
        super().__init__(config)
        self.model = XacleModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        embeddings = next(name for name, module in self.named_modules() if module is self.model.get_input_embeddings())
        self._tied_weights_keys = {"lm_head.weight": f"{embeddings}.weight"}  # decoders name their embeddings differently
        if config.tie_word_embeddings:
            self._keys_to_ignore_on_save = ["lm_head.weight"]  # not saved, and not missed by Trainer when it loads the best
        self.post_init()

    def get_audio_states(self, input_features: torch.Tensor) -> torch.Tensor:
        """See [`XacleModel.get_audio_states`]."""
        return self.model.get_audio_states(input_features)

    def get_audio_features(self, input_features: torch.Tensor, **kwargs):
        """See [`XacleModel.get_audio_features`]."""
        return self.model.get_audio_features(input_features, **kwargs)

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **kwargs):
        """Repeat the rows for beams and samples, but not their clips: only the index of each row's clip is repeated."""
        clips = {name: kwargs.pop(name, None) for name in ("input_features", "audio_states")}
        given = next((clip for clip in clips.values() if clip is not None), None)
        if given is not None and kwargs.get("audio_index") is None:
            rows = len(kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None else input_ids)
            index = torch.arange(rows, device=given.device)
            kwargs["audio_index"] = index if len(given) > 1 else torch.zeros_like(index)
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return input_ids, {**kwargs, **{name: clip for name, clip in clips.items() if clip is not None}}

    def prepare_inputs_for_generation(
        self, input_ids, inputs_embeds=None, is_first_iteration=False, audio_states=None, **kwargs
    ):
        inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if audio_states is not None and (is_first_iteration or not kwargs.get("use_cache", True)):
            inputs["audio_states"] = audio_states  # the sound is read once, with the prompt
        return inputs

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        audio_index: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> tuple | CausalLMOutputWithPast:
        """
        Args:
            labels: Token ids to predict `[batch, tokens]`, -100 where there is nothing to learn; what
                `processor(..., task="captioning")` returns. The loss is next-token cross-entropy.
            logits_to_keep: Only the last so many positions get logits; 0 for all.
            The other arguments are those of [`XacleModel.forward`].
        """
        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            audio_states=audio_states,
            audio_index=audio_index,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


XacleModel.register_for_auto_class("AutoModel")
XacleForAlignmentScoring.register_for_auto_class("AutoModel")
XacleForConditionalGeneration.register_for_auto_class("AutoModelForMultimodalLM")

__all__ = [
    "XacleForAlignmentScoring",
    "XacleForConditionalGeneration",
    "XacleModel",
    "XaclePreTrainedModel",
    "XacleScorerOutput",
    "alignment_loss",
    "listnet_loss",
    "spec_augment",
]
