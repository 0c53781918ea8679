"""A tiny scorer with random weights, and four plain sounds to try it on: everything runs, nothing is learnt."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config

from xacle.audio_xacle import SAMPLING_RATE
from xacle.configuration_xacle import BeatsConfig, XacleConfig
from xacle.modeling_xacle import XacleForAlignmentScoring
from xacle.processing_xacle import XacleFeatureExtractor, XacleProcessor

CAPTIONS = {
    "siren": "A siren rises and falls in pitch",
    "rain": "Rain falls steadily on a roof",
    "clock": "A clock ticks once a second",
    "engine": "An engine hums at a low pitch",
}


def make_sound(name: str, seconds: float = 10.0) -> np.ndarray:
    """One of the `CAPTIONS`' sounds as a waveform `[samples]` at 16 kHz. The same on every machine."""
    time = np.arange(int(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    noise = np.random.default_rng(0).standard_normal(len(time))
    if name == "siren":
        frequency = 900 + 400 * np.sin(2 * np.pi * 0.25 * time)
        wave = np.sin(2 * np.pi * np.cumsum(frequency) / SAMPLING_RATE)
    elif name == "rain":
        wave = 0.3 * noise
    elif name == "clock":
        wave = noise * np.exp(-80 * (time % 1.0))
    elif name == "engine":
        wave = sum(np.sin(2 * np.pi * 55 * k * time) / k for k in range(1, 9)) / 2
    else:
        raise ValueError(f"no sound called {name!r}; there are {', '.join(CAPTIONS)}")
    return (0.5 * wave / np.abs(wave).max()).astype(np.float32)


def tiny_tokenizer(captions: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like Qwen's, trained on a few captions, with Qwen's and the scorer's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    scorer_tokens = ["<|AUDIO_START|>", "<|AUDIO_END|>", "<|SCORE|>", "<|AUDIO|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=scorer_tokens,
    )


def tiny_processor() -> XacleProcessor:
    """The real feature extractor with a tiny tokenizer."""
    return XacleProcessor(XacleFeatureExtractor(), tiny_tokenizer(list(CAPTIONS.values())))


def tiny_config(processor: XacleProcessor, **fields) -> XacleConfig:
    """A configuration some thousand times smaller than the paper's, for `processor`'s tokens; `fields` override it."""
    settings = {
        "audio_config": BeatsConfig(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            patch_embed_dim=32,
        ),
        "text_config": Qwen2Config(
            vocab_size=len(processor.tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=160,
            tie_word_embeddings=True,
            pad_token_id=processor.tokenizer.pad_token_id,
            eos_token_id=processor.tokenizer.eos_token_id,
            bos_token_id=None,
        ),
        "projector_intermediate_size": 128,
        "pad_token_id": processor.tokenizer.pad_token_id,
        "eos_token_id": processor.tokenizer.eos_token_id,
        **{name: getattr(processor, name) for name in XacleConfig.special_token_names},
    }
    return XacleConfig(**{**settings, **fields})


def save_tiny_scorer(folder: Path) -> Path:
    """Write a tiny scorer with random weights, its processor and code, as `AutoModel.from_pretrained` expects them."""
    torch.manual_seed(0)
    processor = tiny_processor()
    XacleForAlignmentScoring(tiny_config(processor)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
