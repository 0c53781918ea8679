"""The parts of a model and their settings: `BeatsConfig` for the audio encoder, `XacleConfig` for the whole scorer.

The defaults are the paper's system (arXiv 2602.00604): BEATs iter3+, 100 audio tokens, one gated SwiGLU block,
Qwen2.5-0.5B-Instruct and a linear score head. The authors' released checkpoint differs in a few fields, which the
converter writes into the converted folder's `config.json`.
"""

import difflib
from typing import ClassVar, Literal

from huggingface_hub.dataclasses import as_validated_field, strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


@as_validated_field
def positive_int(value: int):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"must be a whole number of at least 1, got {value!r}")


@as_validated_field
def positive_number(value: float):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"must be a number above 0, got {value!r}")


@as_validated_field
def non_negative_int(value: int):
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"must be a whole number of at least 0, got {value!r}")


@as_validated_field
def probability(value: float):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"must be a probability in [0, 1), got {value!r}")


@strict
class BeatsConfig(PreTrainedConfig):
    r"""
    Configuration of [`BeatsModel`], the BEATs audio encoder (arXiv 2212.09058). The defaults are BEATs iter3+ AS2M.

    Args:
        hidden_size (`int`, defaults to 768): Width of the Transformer.
        num_hidden_layers (`int`, defaults to 12): Number of Transformer layers.
        num_attention_heads (`int`, defaults to 12): Attention heads a layer.
        intermediate_size (`int`, defaults to 3072): Width of a layer's feed-forward network.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the feed-forward networks.
        num_mel_bins (`int`, defaults to 128): Mel bins of the input fbank.
        patch_size (`int`, defaults to 16): Side of a square fbank patch, in frames and mel bins.
        patch_embed_dim (`int`, defaults to 512): Channels of the patch convolution, projected to `hidden_size` if different.
        conv_bias (`bool`, defaults to `False`): Whether the patch convolution has a bias.
        num_conv_pos_embeddings (`int`, defaults to 128): Kernel of the convolutional position embedding, in tokens.
        num_conv_pos_embedding_groups (`int`, defaults to 16): Its groups.
        num_buckets (`int`, defaults to 320): Buckets of the relative position bias, both directions together.
        max_bucket_distance (`int`, defaults to 800): Distance in tokens from which on the outermost bucket is used.
        deep_norm (`bool`, defaults to `True`): Scale the residual stream by `(2 * num_hidden_layers) ** 0.25`.
        hidden_dropout, attention_dropout, activation_dropout, input_dropout, classifier_dropout (`float`, default 0):
            Dropout of a layer's outputs, the attention weights, the feed-forward activation, the projected patches and
            the classifier's input.
        layerdrop (`float`, defaults to 0.05): Probability of skipping a layer in training.
        layer_norm_eps (`float`, defaults to 1e-5): Epsilon of every LayerNorm.
        initializer_range (`float`, defaults to 0.02): Standard deviation of initial weights that have no rule of their own.
    """

    model_type = "beats"
    base_config_key = "audio_config"

    hidden_size: int = positive_int(default=768)
    num_hidden_layers: int = positive_int(default=12)
    num_attention_heads: int = positive_int(default=12)
    intermediate_size: int = positive_int(default=3072)
    hidden_act: str = "gelu"
    num_mel_bins: int = positive_int(default=128)
    patch_size: int = positive_int(default=16)
    patch_embed_dim: int = positive_int(default=512)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = positive_int(default=128)
    num_conv_pos_embedding_groups: int = positive_int(default=16)
    num_buckets: int = positive_int(default=320)
    max_bucket_distance: int = positive_int(default=800)
    deep_norm: bool = True
    hidden_dropout: float | int = probability(default=0.0)
    attention_dropout: float | int = probability(default=0.0)
    activation_dropout: float | int = probability(default=0.0)
    input_dropout: float | int = probability(default=0.0)
    classifier_dropout: float | int = probability(default=0.0)
    layerdrop: float | int = probability(default=0.05)
    layer_norm_eps: float | int = positive_number(default=1e-5)
    initializer_range: float | int = positive_number(default=0.02)

    def __post_init__(self, **kwargs):
        kwargs["auto_map"] = {
            "AutoConfig": "configuration_xacle.BeatsConfig",
            "AutoModel": "modeling_beats.BeatsModel",
            "AutoModelForAudioClassification": "modeling_beats.BeatsForAudioClassification",
            **(kwargs.get("auto_map") or {}),
        }
        super().__post_init__(**kwargs)

    def validate_heads_and_groups(self):
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if self.hidden_size % getattr(self, name):
                raise ValueError(f"hidden_size ({self.hidden_size}) must be divisible by {name} ({getattr(self, name)})")

    def validate_patches(self):
        if self.num_mel_bins % self.patch_size:
            raise ValueError(f"num_mel_bins ({self.num_mel_bins}) must be divisible by patch_size ({self.patch_size})")

    def validate_buckets(self):
        # Half the buckets a direction; half of those hold one distance each, the rest are logarithmic.
        if self.num_buckets % 4 or self.max_bucket_distance <= self.num_buckets // 4:
            raise ValueError(
                f"num_buckets ({self.num_buckets}) must be divisible by 4 and max_bucket_distance "
                f"({self.max_bucket_distance}) larger than num_buckets / 4"
            )


# Qwen/Qwen2.5-0.5B-Instruct.
QWEN_2_5_0_5B_INSTRUCT = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}


@strict
class XacleConfig(PreTrainedConfig):
    r"""
    Configuration of [`XacleModel`] and the classes built on it.

    Args:
        audio_config (`BeatsConfig` or `dict`): The audio encoder.
        text_config (`PreTrainedConfig` or `dict`, defaults to Qwen2.5-0.5B-Instruct): Any decoder `AutoConfig` knows.
        num_audio_tokens (`int`, defaults to 100): Audio tokens a 10 s clip is pooled to.
        audio_pooling (`"adaptive"` or `"time"`, defaults to `"adaptive"`): `"adaptive"` averages neighbors in the encoder's
            own token order (time-major, frequency fastest), as the released code does; `"time"` first averages the
            frequency patches of each time step, so that a pooled token covers one stretch of time and all frequencies.
        projector_type (`"swiglu"` or `"qformer"`, defaults to `"swiglu"`): How audio states become language-model inputs.
        projector_depth (`int`, defaults to 1): SwiGLU blocks (1 to 3), or layers of the Q-Former. The paper's "3-layer
            SwiGLU MLP" is one block: value, gate and output matrices.
        projector_intermediate_size (`int`, defaults to 3584): Hidden width of a block.
        projector_gated_residual (`bool`, defaults to `True`): Whether a SwiGLU block mixes its output with a linear map of
            its input through a learned sigmoid gate.
        projector_dropout (`float`, defaults to 0.1): Dropout in the projector.
        score_head_hidden_sizes (`list[int]`, defaults to `[]`): Hidden layers of the score head. `[]` is the paper's linear
            layer, `[512, 512, 128]` the released one.
        score_head_dropout (`float`, defaults to 0.1): Dropout after a hidden layer of the score head.
        score_pooling (`"score_token"` or `"last_token"`, defaults to `"score_token"`): The position whose state is scored.
        freeze_audio_encoder (`bool`, defaults to `True`): Keep the encoder in evaluation mode and without gradients.
        freq_mask_width, time_mask_width (`int`, default 0): SpecAugment in training: each clip loses one band of fewer than
            `freq_mask_width` mel bins and one stretch of fewer than `time_mask_width` frames (stage 3: 15 and 30).
        listnet_temperature (`float`, defaults to 1.0): Temperature of the target distribution of the ListNet loss, on
            ratings mapped to [-1, 1].
        listnet_prediction_temperature (`float`, *optional*): Temperature of the predicted distribution; the same if `None`.
        score_scale, score_shift (`float`, default 5): `rating = score_shift + score_scale * logit`. Calibration sets them.
        audio_token_id, audio_start_token_id, audio_end_token_id, score_token_id (`int`): Ids of `<|AUDIO|>` (placeholder),
            `<|AUDIO_START|>`, `<|AUDIO_END|>` and `<|SCORE|>`.
        pad_token_id, eos_token_id (`int`, *optional*): The tokenizer's padding token and the token that ends a caption.
        tie_word_embeddings (`bool`, *optional*): Whether captioning shares the token embeddings; `text_config`'s if `None`.
        weight_sources (`list[dict]`, *optional*): What the weights derive from, as `{"role", "name", "license"}`; `None` if
            it is not recorded. Publishing needs it.
    """

    model_type = "xacle"
    sub_configs_defaults = {
        "audio_config": SubConfigSpec(config_class=BeatsConfig),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2", init_kwargs=QWEN_2_5_0_5B_INSTRUCT),
    }
    special_token_names: ClassVar[tuple[str, ...]] = (
        "audio_start_token_id",
        "audio_end_token_id",
        "score_token_id",
        "audio_token_id",
    )
    # Trainer then hands `scores`, on the scale of the ratings, to `compute_metrics`.
    keys_to_ignore_at_inference = ["logits", "hidden_states", "attentions", "past_key_values"]

    audio_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    num_audio_tokens: int = positive_int(default=100)
    audio_pooling: Literal["adaptive", "time"] = "adaptive"
    projector_type: Literal["swiglu", "qformer"] = "swiglu"
    projector_depth: Literal[1, 2, 3] = 1
    projector_intermediate_size: int = positive_int(default=3584)
    projector_gated_residual: bool = True
    projector_dropout: float | int = probability(default=0.1)
    score_head_hidden_sizes: list[int] | tuple[int, ...] = ()
    score_head_dropout: float | int = probability(default=0.1)
    score_pooling: Literal["score_token", "last_token"] = "score_token"
    freeze_audio_encoder: bool = True
    freq_mask_width: int = non_negative_int(default=0)
    time_mask_width: int = non_negative_int(default=0)
    listnet_temperature: float | int = positive_number(default=1.0)
    listnet_prediction_temperature: float | int | None = None
    score_scale: float | int = positive_number(default=5.0)
    score_shift: float | int = 5.0
    audio_start_token_id: int = non_negative_int(default=151665)
    audio_end_token_id: int = non_negative_int(default=151666)
    score_token_id: int = non_negative_int(default=151667)
    audio_token_id: int = non_negative_int(default=151668)
    pad_token_id: int | None = 151643
    eos_token_id: int | None = 151645
    tie_word_embeddings: bool | None = None
    weight_sources: list[dict] | None = None

    def __post_init__(self, **kwargs):
        for name in kwargs:
            # Unknown arguments are kept as attributes, so a typing mistake would otherwise go unnoticed.
            close = difflib.get_close_matches(name, type(self).__annotations__, n=1, cutoff=0.85)
            if close and not hasattr(type(self), name):
                raise ValueError(f"XacleConfig has no field '{name}'. Did you mean '{close[0]}'?")
        kwargs.setdefault("num_labels", 1)
        kwargs["auto_map"] = {
            "AutoConfig": "configuration_xacle.XacleConfig",
            "AutoModel": "modeling_xacle.XacleForAlignmentScoring",
            "AutoModelForSequenceClassification": "modeling_xacle.XacleForAlignmentScoring",
            "AutoModelForMultimodalLM": "modeling_xacle.XacleForConditionalGeneration",
            **(kwargs.get("auto_map") or {}),
        }
        kwargs["custom_pipelines"] = {
            # The Hub has no task like this one, and displays how to load a model by the task on its card.
            "audio-classification": {
                "impl": "pipeline_xacle.XaclePipeline",
                "pt": ["AutoModel"],
                "type": "multimodal",
            },
            **(kwargs.get("custom_pipelines") or {}),
        }
        self.problem_type = "regression"
        self.score_head_hidden_sizes = list(self.score_head_hidden_sizes)
        super().__post_init__(**kwargs)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))

    def validate_score_head(self):
        if any(isinstance(size, bool) or size < 1 for size in self.score_head_hidden_sizes):
            raise ValueError(f"score_head_hidden_sizes must be positive, got {self.score_head_hidden_sizes}")

    def validate_prediction_temperature(self):
        if self.listnet_prediction_temperature is not None and not self.listnet_prediction_temperature > 0:
            raise ValueError(f"listnet_prediction_temperature must be above 0, got {self.listnet_prediction_temperature}")

    def validate_weight_sources(self):
        for source in self.weight_sources or ():
            if set(source) != {"role", "name", "license"}:
                raise ValueError(f"weight_sources must be dicts with role, name and license, got {source}")

    def validate_special_tokens(self):
        ids = {name: getattr(self, name) for name in self.special_token_names}
        if len(set(ids.values())) < len(ids):
            raise ValueError(f"the special tokens must have different ids, got {ids}")
        if max(ids.values()) >= self.text_config.vocab_size:
            raise ValueError(
                f"special-token ids {ids} must be below text_config.vocab_size ({self.text_config.vocab_size}); "
                "pass the ids of your tokenizer, or a text_config with more rows"
            )


XacleConfig.register_for_auto_class("AutoConfig")
BeatsConfig.register_for_auto_class("AutoConfig")

__all__ = ["BeatsConfig", "XacleConfig"]
