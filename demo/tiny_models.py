"""Untrained models of two sizes, and four plain sounds.

Tiny: a scorer with random weights, for tests and checks in which everything runs and nothing is learned.
Small: the scorer and the CLAP that the demo trains; a hundredth of the sizes that the paper downloads.
"""

import re
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BertConfig, BertTokenizer, PreTrainedTokenizerFast, Qwen2Config

from xacle.audio_xacle import SAMPLING_RATE
from xacle.clap.m2d_configuration import M2dClapAudioConfig, M2dClapConfig
from xacle.clap.m2d_modeling import M2dClapModel
from xacle.clap.m2d_processing import M2dClapFeatureExtractor, M2dClapProcessor
from xacle.configuration_xacle import BeatsConfig, XacleConfig
from xacle.core.provenance import weight_source
from xacle.modeling_beats import BeatsModel
from xacle.modeling_xacle import XacleForAlignmentScoring
from xacle.processing_xacle import XacleFeatureExtractor, XacleProcessor

SMALL_AUDIO_TOKENS = 16
SMALL_VOCABULARY = 800  # most words of the generated captions are one token
DEMO_LICENSE = "apache-2.0"  # of weights that are trained here from nothing: the license of this code
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


def tiny_tokenizer(captions: list[str], vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like Qwen's, trained on a few captions, with Qwen's and the scorer's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
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


def save_small_scorer(
    encoder: BeatsModel, encoder_sources: list[dict], captions: list[str], folder: Path, seed: int = 0
) -> None:
    """Write an untrained scorer around a trained encoder, with a tokenizer trained on `captions`.

    Args:
        encoder_sources: Where the encoder comes from, see core/provenance.py.
    """
    torch.manual_seed(seed)
    processor = XacleProcessor(
        XacleFeatureExtractor(), tiny_tokenizer(captions, SMALL_VOCABULARY), num_audio_tokens=SMALL_AUDIO_TOKENS
    )
    text_config = Qwen2Config(
        vocab_size=len(processor.tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
        initializer_range=0.08,  # about 1 / sqrt(hidden_size): with Qwen's 0.02 so small a model hardly starts to learn
        tie_word_embeddings=True,
        pad_token_id=processor.tokenizer.pad_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
        bos_token_id=None,
    )
    config = tiny_config(
        processor,
        audio_config=encoder.config,
        text_config=text_config,
        num_audio_tokens=SMALL_AUDIO_TOKENS,
        audio_pooling="time",
        projector_intermediate_size=192,
        weight_sources=[
            *encoder_sources,
            weight_source("language model", "a small Qwen2 that starts from random weights", DEMO_LICENSE),
        ],
    )
    model = XacleForAlignmentScoring(config)
    model.model.audio_tower.load_state_dict(encoder.state_dict())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_small_clap(captions: list[str], folder: Path, seed: int = 0) -> None:
    """Write an untrained, small M2D-CLAP that knows the words of `captions`; its patches are 160 ms of all mel bins."""
    torch.manual_seed(seed)
    audio = M2dClapAudioConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        mlp_ratio=2,
        patch_height=80,
        patch_width=16,
        projection_type="mlp",
    )
    words = sorted({word for caption in captions for word in re.findall(r"\w+|[^\w\s]", caption.lower())})
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    processor = M2dClapProcessor(M2dClapFeatureExtractor(), BertTokenizer(str(vocabulary)))
    text = BertConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=audio.hidden_size,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=2 * audio.hidden_size,
    )
    config = M2dClapConfig(audio_config=audio, text_config=text, text_pooling="mean")
    config.weight_sources = [weight_source("teacher", "a small M2D-CLAP that starts from random weights", DEMO_LICENSE)]
    M2dClapModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
