"""The architecture of M2D-CLAP: `M2dClapAudioConfig` for the audio tower, `M2dClapConfig` for both towers.

The defaults are the checkpoint of 2025, `m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025` (Niizumi et al., M2D-CLAP). The
original reads its architecture from the name of the checkpoint's folder; here all of it is in `config.json`.
"""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from xacle.configuration_xacle import positive_int, positive_number


@strict
class M2dClapAudioConfig(PreTrainedConfig):
    r"""
    Configuration of [`M2dClapAudioModel`]: a ViT over log-mel patches and the projection into the text encoder's space.

    Args:
        hidden_size (`int`, defaults to 768): Width of the Transformer.
        num_hidden_layers (`int`, defaults to 12): Number of Transformer layers.
        num_attention_heads (`int`, defaults to 12): Attention heads a layer.
        mlp_ratio (`float`, defaults to 4): Width of a layer's feed-forward network, in `hidden_size`s.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the feed-forward networks.
        num_mel_bins (`int`, defaults to 80): Mel bins of the input.
        input_frames (`int`, defaults to 1001): Frames of a chunk, 10 s; longer audio is encoded in several.
        patch_height, patch_width (`int`, default 16): Mel bins and frames of a patch. The 20 ms variant has 80 and 2.
        sampling_rate (`int`, defaults to 16000): Of the sounds the checkpoint was trained on, in Hz.
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of the ViT's LayerNorms.
        projection_type (`"semantic_token"` or `"mlp"`, defaults to `"semantic_token"`): How patches become an embedding. 2025:
            a learned token reads them in Transformer layers; 2024: their mean goes through two linear layers with a ReLU.
        projection_num_layers, projection_num_heads, projection_mlp_ratio (default 1): Layers of the semantic token's
            Transformer, heads a layer, and width of its feed-forward networks in `hidden_size`s.
        projection_layer_norm_eps (`float`, defaults to 1e-5): Epsilon of the projection's LayerNorms.
        initializer_range (`float`, defaults to 0.02): Standard deviation of initial weights.
    """

    model_type = "m2d_clap_audio"
    base_config_key = "audio_config"

    hidden_size: int = positive_int(default=768)
    num_hidden_layers: int = positive_int(default=12)
    num_attention_heads: int = positive_int(default=12)
    mlp_ratio: float | int = positive_number(default=4)
    hidden_act: str = "gelu"
    num_mel_bins: int = positive_int(default=80)
    input_frames: int = positive_int(default=1001)
    patch_height: int = positive_int(default=16)
    patch_width: int = positive_int(default=16)
    sampling_rate: Literal[16000] = 16000
    layer_norm_eps: float | int = positive_number(default=1e-6)
    projection_type: Literal["semantic_token", "mlp"] = "semantic_token"
    projection_num_layers: int = positive_int(default=1)
    projection_num_heads: int = positive_int(default=1)
    projection_mlp_ratio: float | int = positive_number(default=1)
    projection_layer_norm_eps: float | int = positive_number(default=1e-5)
    initializer_range: float | int = positive_number(default=0.02)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Patches of a whole chunk, `(frequency, time)`: (5, 62). Frames that fill no patch (9 of 1001) are not seen."""
        return self.num_mel_bins // self.patch_height, self.input_frames // self.patch_width

    def validate_heads(self):
        for name in ("num_attention_heads", "projection_num_heads"):
            if self.hidden_size % getattr(self, name):
                raise ValueError(f"hidden_size ({self.hidden_size}) must be divisible by {name} ({getattr(self, name)})")

    def validate_patches(self):
        if self.num_mel_bins % self.patch_height:
            raise ValueError(f"num_mel_bins ({self.num_mel_bins}) must be divisible by patch_height ({self.patch_height})")
        if self.input_frames < self.patch_width:
            raise ValueError(f"input_frames ({self.input_frames}) must be at least patch_width ({self.patch_width})")


@strict
class M2dClapConfig(PreTrainedConfig):
    r"""
    Configuration of [`M2dClapModel`].

    Args:
        audio_config (`M2dClapAudioConfig` or `dict`): The audio tower.
        text_config (`PreTrainedConfig` or `dict`, defaults to BERT base): The text encoder; GTE-base is a `BertConfig` too.
            As text has no projection, its `hidden_size` is the audio tower's.
        text_pooling (`"cls"` or `"mean"`, defaults to `"cls"`): The text embedding: the first token's state (2025) or the
            mean over the tokens (2024).
        logit_scale_init_value (`float`, defaults to 1 / 0.07): Initial factor of the cosine similarities, as in CLIP.
        checkpoint_name (`str`, *optional*): Name of the released checkpoint that the weights come from.
    """

    model_type = "m2d_clap"
    sub_configs_defaults = {
        "audio_config": SubConfigSpec(config_class=M2dClapAudioConfig),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
    }

    audio_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    text_pooling: Literal["cls", "mean"] = "cls"
    logit_scale_init_value: float | int = positive_number(default=1 / 0.07)
    checkpoint_name: str | None = None

    def validate_widths(self):
        if self.audio_config.hidden_size != self.text_config.hidden_size:
            raise ValueError(
                f"audio_config.hidden_size ({self.audio_config.hidden_size}) and text_config.hidden_size "
                f"({self.text_config.hidden_size}) must be equal: both towers embed into one space"
            )


AutoConfig.register(M2dClapAudioConfig.model_type, M2dClapAudioConfig, exist_ok=True)
AutoConfig.register(M2dClapConfig.model_type, M2dClapConfig, exist_ok=True)

__all__ = ["M2dClapAudioConfig", "M2dClapConfig"]
