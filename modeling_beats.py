"""BEATs (arXiv 2212.09058): fbank patches -> audio tokens, as a stand-alone transformers model.

    fbank [batch, frames, 128] --16x16 patches--> [batch, tokens, 512] --linear--> [batch, tokens, 768] --12 layers--> same

A token is one patch: `tokens = 8 * (frames // 16)`, ordered by time first and frequency second. 10 s give 998 frames and
62 * 8 = 496 tokens. Numerically equal to Microsoft's release; the gated relative position bias goes through the attention
interface of transformers, so eager, sdpa and flex_attention all work.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_xacle import BeatsConfig


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, position_bias=None, **kwargs):
    """Softmax attention with an additive position bias. `query`, `key`, `value`: `[batch, heads, tokens, head_dim]`."""
    weights = query @ key.transpose(2, 3) * scaling
    if position_bias is not None:
        weights = weights + position_bias
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class BeatsEmbeddings(nn.Module):
    """Fbank `[batch, frames, mel bins]` -> patch embeddings `[batch, tokens, hidden_size]`."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.patch_embedding = nn.Conv2d(
            1, config.patch_embed_dim, config.patch_size, stride=config.patch_size, bias=config.conv_bias
        )
        self.layer_norm = nn.LayerNorm(config.patch_embed_dim, eps=config.layer_norm_eps)
        self.projection = None
        if config.patch_embed_dim != config.hidden_size:
            self.projection = nn.Linear(config.patch_embed_dim, config.hidden_size)
        self.dropout = nn.Dropout(config.input_dropout)

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(input_features.unsqueeze(1))  # [batch, patch_embed_dim, time, frequency]
        hidden_states = self.layer_norm(patches.flatten(2).transpose(1, 2))  # time-major: token = time * 8 + frequency
        if self.projection is not None:
            hidden_states = self.projection(hidden_states)
        return self.dropout(hidden_states)


class BeatsPositionalConvEmbedding(nn.Module):
    """Convolutional position embedding with weight normalization over each kernel tap.

    The two factors are plain parameters: a parametrized `nn.Conv1d` can be neither pickled nor filled from the meta
    device, and transformers renames checkpoint keys that end in `weight_g` and `weight_v`.
    """

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.kernel_size = config.num_conv_pos_embeddings
        self.groups = config.num_conv_pos_embedding_groups
        in_channels = config.hidden_size // self.groups
        self.magnitude = nn.Parameter(torch.ones(1, 1, self.kernel_size))
        self.direction = nn.Parameter(torch.randn(config.hidden_size, in_channels, self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # Tensor.norm over the two outer dimensions takes ten times as long and is 30 times less exact than a sum of squares;
        # that in turn needs float32, which the norm uses by itself.
        norm = self.direction.float().square().sum(dim=(0, 1), keepdim=True).sqrt()
        weight = self.direction * (self.magnitude / norm.to(self.direction.dtype))
        positions = nn.functional.conv1d(
            hidden_states.transpose(1, 2), weight, self.bias, padding=self.kernel_size // 2, groups=self.groups
        )
        positions = positions[..., : hidden_states.shape[1]]  # an even kernel gives one token too many
        return nn.functional.gelu(positions).transpose(1, 2)


class BeatsAttention(nn.Module):
    """Self-attention whose relative position bias is scaled by a gate computed from each head's query."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_dropout
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.gru_rel_pos_linear = nn.Linear(self.head_dim, 8)
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, config.num_attention_heads, 1, 1))

    def gate(self, query: torch.Tensor) -> torch.Tensor:
        """Gate of the position bias, `[batch, heads, tokens, 1]`. Unlike WavLM's it sees the projected, unscaled query."""
        gates = self.gru_rel_pos_linear(query).unflatten(-1, (2, 4)).sum(-1).sigmoid()
        update, reset = gates.chunk(2, dim=-1)
        return update * (reset * self.gru_rel_pos_const - 1.0) + 2.0

    def forward(self, hidden_states, position_bias, attention_mask=None, **kwargs):
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            proj(hidden_states).view(shape).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
            position_bias=self.gate(query) * position_bias,
            **kwargs,
        )
        return self.out_proj(output.reshape(hidden_states.shape)), weights


class BeatsLayer(GradientCheckpointingLayer):
    """Post-norm Transformer layer with a scaled residual stream (DeepNorm, arXiv 2203.00555)."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.residual_scale = (2 * config.num_hidden_layers) ** 0.25 if config.deep_norm else 1.0
        self.attention = BeatsAttention(config)
        self.attention_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation_dropout = nn.Dropout(config.activation_dropout)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states, position_bias, attention_mask=None, **kwargs):
        attended, _ = self.attention(hidden_states, position_bias, attention_mask, **kwargs)
        hidden_states = self.attention_layer_norm(hidden_states * self.residual_scale + self.dropout(attended))
        transformed = self.fc2(self.activation_dropout(self.activation(self.fc1(hidden_states))))
        return self.final_layer_norm(hidden_states * self.residual_scale + self.dropout(transformed))


class BeatsEncoder(nn.Module):
    """Position convolution, then layers that share one table of relative position biases."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.config = config
        self.pos_conv_embed = BeatsPositionalConvEmbedding(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.relative_attention_bias = nn.Embedding(config.num_buckets, config.num_attention_heads)
        self.layers = nn.ModuleList([BeatsLayer(config) for _ in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False

    def position_bias(self, num_tokens: int, device: torch.device) -> torch.Tensor:
        """Relative position bias `[1, heads, query, key]`, looked up once for each of the `2 * tokens - 1` distances."""
        distance = torch.arange(1 - num_tokens, num_tokens, device=device)  # key - query
        buckets = self.config.num_buckets // 2
        exact = buckets // 2
        logarithmic = torch.log(distance.abs().clamp(min=1).float() / exact)
        logarithmic = logarithmic / math.log(self.config.max_bucket_distance / exact) * (buckets - exact)
        logarithmic = (exact + logarithmic.to(torch.long)).clamp(max=buckets - 1)
        bucket = torch.where(distance.abs() < exact, distance.abs(), logarithmic) + buckets * (distance > 0)
        bias = self.relative_attention_bias(bucket)  # [2 * tokens - 1, heads]
        position = torch.arange(num_tokens, device=device)
        offset = position[None, :] - position[:, None] + num_tokens - 1
        return bias[offset].permute(2, 0, 1).unsqueeze(0).contiguous()

    def forward(self, hidden_states, token_mask=None, **kwargs):
        if token_mask is not None:
            hidden_states = hidden_states.masked_fill(~token_mask.unsqueeze(-1), 0.0)
        hidden_states = hidden_states + self.pos_conv_embed(hidden_states)
        hidden_states = self.dropout(self.layer_norm(hidden_states))
        attention_mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden_states, attention_mask=token_mask)
        position_bias = self.position_bias(hidden_states.shape[1], hidden_states.device)
        for layer in self.layers:
            if self.training and self.config.layerdrop > 0 and torch.rand(()) < self.config.layerdrop:
                continue
            hidden_states = layer(hidden_states, position_bias, attention_mask, **kwargs)
        return hidden_states


class BeatsPreTrainedModel(PreTrainedModel):
    config: BeatsConfig
    base_model_prefix = "beats"
    main_input_name = "input_features"
    input_modalities = ["audio"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["BeatsLayer"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Flash attention takes no additive bias; transformers would drop it without a warning.
    _supports_flash_attn = False
    _can_record_outputs = {"hidden_states": BeatsLayer, "attentions": BeatsAttention}

    def _init_weights(self, module):
        """Initialization of the BEATs paper: DeepNorm's gains in the layers, BERT's normal distribution elsewhere."""
        super()._init_weights(module)
        if isinstance(module, BeatsLayer):
            gain = (8 * self.config.num_hidden_layers) ** -0.25 if self.config.deep_norm else 1.0
            attention = module.attention
            for linear in (attention.q_proj, attention.k_proj):
                init.xavier_normal_(linear.weight)
            for linear in (attention.v_proj, attention.out_proj, module.fc1, module.fc2):
                init.xavier_normal_(linear.weight, gain=gain)
        elif isinstance(module, BeatsAttention):
            init.ones_(module.gru_rel_pos_const)
        elif isinstance(module, BeatsPositionalConvEmbedding):
            channels = module.direction.shape[0]
            init.normal_(module.direction, std=math.sqrt(4.0 / (module.kernel_size * channels)))
            init.copy_(module.magnitude, module.direction.norm(dim=(0, 1), keepdim=True))
            init.zeros_(module.bias)


class BeatsModel(BeatsPreTrainedModel):
    """The BEATs encoder without a head."""

    def __init__(self, config: BeatsConfig):
        super().__init__(config)
        self.embeddings = BeatsEmbeddings(config)
        self.encoder = BeatsEncoder(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.patch_embedding

    def set_input_embeddings(self, value):
        self.embeddings.patch_embedding = value

    def token_mask(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """Frame mask `[batch, frames]` -> token mask `[batch, tokens]` (bool, true where there is sound).

        Microsoft's rule, kept because released checkpoints were trained with it: the frames are dealt out to the tokens
        evenly (2 each for 10 s), whatever patch a token really covers, and a token counts if any of its frames does. The
        last time step of a masked clip may thus keep only some of its frequency patches.
        """
        frames = attention_mask.shape[1]
        tokens = frames // self.config.patch_size * (self.config.num_mel_bins // self.config.patch_size)
        share = frames // tokens
        return attention_mask[:, : tokens * share].bool().view(-1, tokens, share).any(-1)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> tuple | BaseModelOutput:
        """
        Args:
            input_features: Normalized fbank `[batch, frames, num_mel_bins]`, as [`XacleFeatureExtractor`] returns it.
            attention_mask: `[batch, frames]`, 1 for frames with sound and 0 for padding.

        Returns:
            `last_hidden_state` `[batch, tokens, hidden_size]`; `hidden_states` starts with the first layer's input.

        Raises:
            ValueError: if the fbank has another shape or is shorter than one patch.
        """
        patch_size, mel_bins = self.config.patch_size, self.config.num_mel_bins
        if input_features.ndim != 3 or input_features.shape[2] != mel_bins or input_features.shape[1] < patch_size:
            raise ValueError(
                f"input_features must be [batch, frames, {mel_bins}] with at least {patch_size} frames "
                f"(0.175 s at 16 kHz), got {list(input_features.shape)}"
            )
        weight = self.embeddings.patch_embedding.weight
        hidden_states = self.embeddings(input_features.to(weight.dtype))
        token_mask = None if attention_mask is None else self.token_mask(attention_mask)
        return BaseModelOutput(last_hidden_state=self.encoder(hidden_states, token_mask, **kwargs))


class BeatsForAudioClassification(BeatsPreTrainedModel):
    """BEATs with a linear classifier whose logits are averaged over the tokens (527 AudioSet classes when released)."""

    def __init__(self, config: BeatsConfig):
        super().__init__(config)
        self.beats = BeatsModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple | SequenceClassifierOutput:
        """
        Args:
            input_features: Normalized fbank `[batch, frames, num_mel_bins]`.
            attention_mask: `[batch, frames]`, 1 for frames with sound and 0 for padding.
            labels: Class ids `[batch]` for the cross-entropy loss, or multi-hot floats `[batch, num_labels]` for the binary
                one (AudioSet); `config.problem_type` decides where the type does not.

        Returns:
            `logits` `[batch, num_labels]`; the release's class probabilities are `logits.sigmoid()`.
        """
        outputs = self.beats(input_features, attention_mask=attention_mask, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))  # [batch, tokens, num_labels]
        if attention_mask is None:
            logits = logits.mean(dim=1)
        else:
            kept = self.beats.token_mask(attention_mask).unsqueeze(-1)
            logits = (logits * kept).sum(dim=1) / kept.sum(dim=1)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


BeatsModel.register_for_auto_class("AutoModel")
BeatsForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")

__all__ = ["BeatsForAudioClassification", "BeatsModel", "BeatsPreTrainedModel"]
