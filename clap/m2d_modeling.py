"""M2D-CLAP: sounds and captions -> embeddings whose cosine is how well they match. A port from published facts.

    log-mel [batch, frames, 80] --16x16 patches--> [batch, 5 * 62, 768] --ViT--> same --semantic token--> [batch, 768]
    caption --BERT--> [batch, tokens, 768] --first token--> [batch, 768]

A token is one patch; the grid is laid out by frequency first: token = frequency * 62 + time (Niizumi et al., M2D-CLAP). The
surface is that of transformers' `ClapModel`: `get_audio_features`, `get_text_features` and `forward` return the same kinds of
outputs, L2-normalized at the same places. The towers `audio_model` and `text_model` return embeddings before normalization.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clap.modeling_clap import ClapOutput
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from xacle.clap.m2d_configuration import M2dClapAudioConfig, M2dClapConfig
from xacle.core.provenance import NOTICE_FILE

MAX_LOGIT_SCALE = math.log(100)  # as in CLIP

LICENSE_NOTICE = """\
# License of M2D-CLAP weights

The weights of M2D-CLAP belong to NTT. They are released under its "SOFTWARE LICENSE AGREEMENT FOR EVALUATION" (found at
github.com/nttcslab/m2d), which allows internal, non-commercial evaluation and neither distribution nor modification.
Weights that are converted from them or trained from them remain under these terms: read the agreement itself, do not
upload, share or sell this folder, and ask NTT for any other use.

The code that reads these weights was written independently and is not covered by that agreement.
"""


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Softmax attention. `query`, `key`, `value`: `[batch, heads, tokens, head_dim]`."""
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def mean_over(hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of `[batch, tokens, hidden_size]` over the tokens that `mask` `[batch, tokens]` keeps."""
    if mask is None:
        return hidden_states.mean(dim=1)
    mask = mask.float().unsqueeze(-1)
    return ((hidden_states.float() * mask).sum(dim=1) / mask.sum(dim=1)).to(hidden_states.dtype)


class M2dClapEmbeddings(nn.Module):
    """Chunks `[chunks, frames, mel bins]` -> a CLS token and patches, `[chunks, 1 + bands * columns, hidden_size]`."""

    def __init__(self, config: M2dClapAudioConfig):
        super().__init__()
        self.grid = config.patch_grid
        patch = (config.patch_height, config.patch_width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + math.prod(self.grid), config.hidden_size))
        self.patch_embeddings = nn.Conv2d(1, config.hidden_size, patch, stride=patch)

    def forward(self, chunks: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embeddings(chunks.mT.unsqueeze(1))  # [chunks, hidden_size, bands, columns]
        # Short input takes the first columns of the grid; nothing is interpolated.
        positions = self.position_embeddings[:, 1:].unflatten(1, self.grid)[:, :, : patches.shape[-1]].flatten(1, 2)
        cls_token = self.cls_token + self.position_embeddings[:, :1]
        return torch.cat([cls_token.expand(len(chunks), -1, -1), patches.flatten(2).mT + positions], dim=1)


class M2dClapAttention(nn.Module):
    def __init__(self, config: M2dClapAudioConfig, num_heads: int):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.scaling = (config.hidden_size // num_heads) ** -0.5
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attention(self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0, **kwargs)
        return self.proj(output.reshape(hidden_states.shape)), weights


class M2dClapLayer(GradientCheckpointingLayer):
    """Pre-norm Transformer layer, of the ViT and of the projection."""

    def __init__(self, config: M2dClapAudioConfig, num_heads: int, mlp_ratio: float, layer_norm_eps: float):
        super().__init__()
        intermediate_size = int(config.hidden_size * mlp_ratio)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=layer_norm_eps)
        self.attention = M2dClapAttention(config, num_heads)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, config.hidden_size)

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        attended, _ = self.attention(self.norm1(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.fc2(self.activation(self.fc1(self.norm2(hidden_states))))


class M2dClapSemanticTokenProjection(nn.Module):
    """2025: a learned token joins the patches in Transformer layers without positions; its state is the embedding."""

    def __init__(self, config: M2dClapAudioConfig):
        super().__init__()
        self.config = config
        shape = (config.projection_num_heads, config.projection_mlp_ratio, config.projection_layer_norm_eps)
        self.semantic_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.blocks = nn.ModuleList([M2dClapLayer(config, *shape) for _ in range(config.projection_num_layers)])
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.projection_layer_norm_eps)

    def forward(self, patches: torch.Tensor, patch_mask: torch.Tensor | None = None) -> torch.Tensor:
        hidden_states = torch.cat([self.semantic_token.expand(len(patches), -1, -1), patches], dim=1)
        if patch_mask is not None:
            patch_mask = F.pad(patch_mask, (1, 0), value=True)
        attention_mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden_states, attention_mask=patch_mask)
        for block in self.blocks:
            hidden_states = block(hidden_states, attention_mask)
        return self.layer_norm(hidden_states[:, 0])


class M2dClapMlpProjection(nn.Module):
    """2024: the mean of the patches, then two linear layers with a ReLU between them."""

    def __init__(self, config: M2dClapAudioConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.hidden_size, config.hidden_size)
        self.linear_2 = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, patches: torch.Tensor, patch_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.linear_2(self.linear_1(mean_over(patches, patch_mask)).relu())


PROJECTIONS = {"semantic_token": M2dClapSemanticTokenProjection, "mlp": M2dClapMlpProjection}


class M2dClapPreTrainedModel(PreTrainedModel):
    config: M2dClapConfig
    base_model_prefix = "m2d_clap"
    main_input_name = "input_features"
    input_modalities = ["audio", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["M2dClapLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, M2dClapEmbeddings):
            init.normal_(module.cls_token, std=self.config.initializer_range)
            init.normal_(module.position_embeddings, std=self.config.initializer_range)
        elif isinstance(module, M2dClapSemanticTokenProjection):
            init.normal_(module.semantic_token, std=self.config.initializer_range)
        elif isinstance(module, M2dClapModel):
            init.constant_(module.logit_scale, math.log(self.config.logit_scale_init_value))

    def save_pretrained(
        self,
        save_directory,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ):
        """`PreTrainedModel.save_pretrained`, plus `LICENSE_NOTICE.md`. `push_to_hub=True` raises, see [`push_to_hub`]."""
        if push_to_hub:
            self.push_to_hub()
        super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs)
        if is_main_process:
            (Path(save_directory) / NOTICE_FILE).write_text(LICENSE_NOTICE, encoding="utf-8")

    def push_to_hub(self, *args, **kwargs):
        """Always raises `PermissionError`: NTT's license forbids distribution. `xacle push` asks before it uploads."""
        raise PermissionError(
            f"{LICENSE_NOTICE}\nNothing was uploaded. If you hold the right to upload these weights, save them into a folder "
            "and use `xacle push FOLDER REPO_ID --accept-license`"
        )


class M2dClapAudioModel(M2dClapPreTrainedModel):
    """The audio tower: ViT and projection."""

    config: M2dClapAudioConfig
    input_modalities = ["audio"]
    _can_record_outputs = {  # of the ViT, not of the projection
        "hidden_states": OutputRecorder(M2dClapLayer, layer_name="layers"),
        "attentions": OutputRecorder(M2dClapAttention, index=1, layer_name="layers"),
    }

    def __init__(self, config: M2dClapAudioConfig):
        super().__init__(config)
        shape = (config.num_attention_heads, config.mlp_ratio, config.layer_norm_eps)
        self.embeddings = M2dClapEmbeddings(config)
        self.layers = nn.ModuleList([M2dClapLayer(config, *shape) for _ in range(config.num_hidden_layers)])
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection = PROJECTIONS[config.projection_type](config)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.patch_embeddings

    def cut(self, input_features, input_lengths=None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Cut `[batch, frames, mel bins]` into chunks, and mark the patches that hold sound.

        Chunks follow each other every `input_frames` frames. A clip's last one is filled with 0, the mean after
        normalization, up to a multiple of the patch width, but never beyond the position grid: like a whole chunk it
        loses the frames that fill no patch.

        Returns:
            `[batch * chunks, frames of a chunk, mel bins]`, and a mask `[batch, chunks, patches]` (true where there is
            sound), or `None` if all patches hold sound.
        """
        batch, frames, mel_bins = input_features.shape
        width, (bands, _) = self.config.patch_width, self.config.patch_grid
        chunk_frames = min(math.ceil(frames / width) * width, self.config.input_frames)
        num_chunks, columns = math.ceil(frames / chunk_frames), chunk_frames // width
        mask = None
        last_chunk_is_full = frames - (num_chunks - 1) * chunk_frames > (columns - 1) * width
        if input_lengths is not None or not last_chunk_is_full:
            device = input_features.device
            if input_lengths is None:
                input_lengths = torch.full((batch,), frames, device=device)
            lengths = input_lengths.to(device)[:, None]
            is_padding = torch.arange(frames, device=device) >= lengths  # [batch, frames]
            input_features = input_features.masked_fill(is_padding.unsqueeze(-1), 0.0)
            left = lengths - chunk_frames * torch.arange(num_chunks, device=device)  # [batch, chunks]: frames from its start on
            mask = torch.arange(columns, device=device) * width < left.unsqueeze(-1)  # [batch, chunks, columns]
            mask = mask.unsqueeze(2).expand(-1, -1, bands, -1).flatten(2)
        input_features = F.pad(input_features, (0, 0, 0, num_chunks * chunk_frames - frames))
        return input_features.reshape(batch * num_chunks, chunk_frames, mel_bins), mask

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, input_features: torch.Tensor, input_lengths: torch.Tensor | None = None, **kwargs
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Args:
            input_features: Normalized log-mel `[batch, frames, num_mel_bins]`, of any length, as
                [`M2dClapFeatureExtractor`] returns it.
            input_lengths: `[batch]`, each clip's frames without padding, at least 1; all frames if missing. With it a clip's
                embedding does not depend on what it is batched with.

        Returns:
            `last_hidden_state` `[batch, tokens, hidden_size]`, the patches without CLS, chunk after chunk; `pooler_output`
            `[batch, hidden_size]`, the embedding before normalization. `hidden_states` and `attentions` are the ViT's, of
            `batch * chunks` chunks with their CLS.

        Raises:
            ValueError: if the input has another shape.
        """
        mel_bins = self.config.num_mel_bins
        if input_features.ndim != 3 or input_features.shape[2] != mel_bins or 0 in input_features.shape:
            raise ValueError(f"input_features must be [batch, frames, {mel_bins}], got {list(input_features.shape)}")
        batch = len(input_features)
        if input_lengths is not None and list(input_lengths.shape) != [batch]:
            raise ValueError(f"input_lengths must be [{batch}], one for each clip, got {list(input_lengths.shape)}")
        chunks, mask = self.cut(input_features, input_lengths)
        hidden_states = self.embeddings(chunks.to(self.embeddings.patch_embeddings.weight.dtype))
        # CLS is always there, so a chunk in which a shorter clip has no frames left still has something to attend to.
        token_mask = None if mask is None else F.pad(mask.flatten(0, 1), (1, 0), value=True)
        attention_mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden_states, attention_mask=token_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        patches = self.layer_norm(hidden_states)[:, 1:].reshape(batch, -1, self.config.hidden_size)
        embedding = self.projection(patches, None if mask is None else mask.flatten(1))
        return BaseModelOutputWithPooling(last_hidden_state=patches, pooler_output=embedding)


class M2dClapTextModel(nn.Module):
    """The text tower: an encoder and the pooling of its last states. Unlike the original it can be trained."""

    def __init__(self, config: M2dClapConfig):
        super().__init__()
        self.pooling = config.text_pooling
        self.encoder = AutoModel.from_config(config.text_config, add_pooling_layer=False)

    def forward(self, input_ids, attention_mask=None, **kwargs) -> BaseModelOutputWithPooling:
        """`input_ids` and `attention_mask` `[batch, tokens]` -> `pooler_output` `[batch, hidden_size]`, not normalized."""
        limit = self.encoder.config.max_position_embeddings
        if input_ids.shape[1] > limit:
            raise ValueError(
                f"a caption of {input_ids.shape[1]} tokens is too long for the text encoder, which takes {limit} at most; "
                f"pass truncation=True, max_length={limit} to the processor"
            )
        outputs = self.encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        states = outputs.last_hidden_state
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=states[:, 0] if self.pooling == "cls" else mean_over(states, attention_mask),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class M2dClapModel(M2dClapPreTrainedModel):
    """Both towers. Used like transformers' `ClapModel`, with `input_lengths` where that has `is_longer`."""

    def __init__(self, config: M2dClapConfig):
        super().__init__(config)
        self.audio_model = M2dClapAudioModel(config.audio_config)
        self.text_model = M2dClapTextModel(config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale_init_value)))
        self.post_init()

    def get_input_embeddings(self):
        return self.text_model.encoder.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.text_model.encoder.set_input_embeddings(value)

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> tuple | BaseModelOutputWithPooling:
        """Captions `[batch, tokens]` -> `pooler_output` `[batch, hidden_size]` of length 1, and the encoder's states."""
        outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        outputs.pooler_output = F.normalize(outputs.pooler_output, dim=-1)
        return outputs

    @can_return_tuple
    def get_audio_features(
        self, input_features: torch.Tensor, input_lengths: torch.Tensor | None = None, **kwargs
    ) -> tuple | BaseModelOutputWithPooling:
        """Log-mel `[batch, frames, mel bins]` -> `pooler_output` `[batch, hidden_size]` of length 1, and the patches.

        See [`M2dClapAudioModel.forward`] for the arguments.
        """
        outputs = self.audio_model(input_features, input_lengths, **kwargs)
        outputs.pooler_output = F.normalize(outputs.pooler_output, dim=-1)
        return outputs

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        input_features: torch.Tensor,
        input_lengths: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_loss: bool | None = None,
        **kwargs,
    ) -> tuple | ClapOutput:
        """
        Args:
            input_ids, attention_mask: Captions `[captions, tokens]`.
            input_features, input_lengths: Clips; see [`M2dClapAudioModel.forward`].
            return_loss: Whether to return the symmetric InfoNCE loss, for which clip i belongs to caption i.

        Returns:
            `audio_embeds` `[clips, hidden_size]` and `text_embeds` `[captions, hidden_size]` of length 1, their scaled cosines
            `logits_per_audio` `[clips, captions]` and `logits_per_text`, and the towers' outputs, whose `pooler_output` is
            the embedding before normalization.
        """
        audio_outputs = self.audio_model(input_features, input_lengths, **kwargs)
        text_outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        audio_embeds = F.normalize(audio_outputs.pooler_output, dim=-1)
        text_embeds = F.normalize(text_outputs.pooler_output, dim=-1)
        logits_per_audio = audio_embeds @ text_embeds.T * self.logit_scale.clamp(0.0, MAX_LOGIT_SCALE).exp()
        loss = None
        if return_loss:
            pairs = torch.arange(len(audio_embeds), device=logits_per_audio.device)
            loss = (F.cross_entropy(logits_per_audio, pairs) + F.cross_entropy(logits_per_audio.T, pairs)) / 2
        return ClapOutput(
            loss=loss,
            logits_per_audio=logits_per_audio,
            logits_per_text=logits_per_audio.T,
            text_embeds=text_embeds,
            audio_embeds=audio_embeds,
            text_model_output=text_outputs,
            audio_model_output=audio_outputs,
        )


AutoModel.register(M2dClapAudioConfig, M2dClapAudioModel, exist_ok=True)
AutoModel.register(M2dClapConfig, M2dClapModel, exist_ok=True)

__all__ = ["LICENSE_NOTICE", "M2dClapAudioModel", "M2dClapModel", "M2dClapPreTrainedModel"]
