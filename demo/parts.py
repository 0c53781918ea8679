"""What the recipe starts from, in small: a BEATs that classifies events, an untrained scorer around it, an untrained CLAP.

In the paper these are downloads: BEATs trained on AudioSet, Qwen2.5-0.5B-Instruct, M2D-CLAP.
"""

import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import BertConfig, BertTokenizer, Qwen2Config

from xacle.clap.m2d_configuration import M2dClapAudioConfig, M2dClapConfig
from xacle.clap.m2d_modeling import M2dClapModel
from xacle.clap.m2d_processing import M2dClapFeatureExtractor, M2dClapProcessor
from xacle.configuration_xacle import BeatsConfig
from xacle.core.provenance import weight_source
from xacle.demo.random_weights import tiny_config, tiny_tokenizer
from xacle.modeling_beats import BeatsForAudioClassification
from xacle.modeling_xacle import XacleForAlignmentScoring
from xacle.processing_xacle import XacleFeatureExtractor, XacleProcessor
from xacle.soundscapes.scenes import AXIS_OF, KINDS, SAMPLING_RATE, Scene, generator, pick, random_event, random_scene, render

BATCH_SIZE = 32
CROP_FRAMES = 320  # 3.2 s, a third of a clip: cheaper, and never the same twice
MIX_AFTER = 0.3  # of the steps; before, each crop has one event
AUDIBLE_DB = 25  # below the loudest frame
LEARNING_RATE = 1.5e-3
CLASSES = (*KINDS, *AXIS_OF)
DEMO_LICENSE = "apache-2.0"  # made here from nothing: under the license of this code


def small_beats_config() -> BeatsConfig:
    """A BEATs some hundred times smaller than the original: patches of 32 mel bins x 320 ms, 124 tokens in 10 s."""
    return BeatsConfig(
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        patch_size=32,
        patch_embed_dim=64,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=4,
        layerdrop=0.0,
        num_labels=len(CLASSES),
    )


def features(scene: Scene, rng: np.random.Generator) -> torch.Tensor:
    """The scorer's normalised fbank of a scene `[1, 998, 128]`."""
    wave = render(scene, int(rng.random() * 2**32))
    return XacleFeatureExtractor()(wave, sampling_rate=SAMPLING_RATE, return_tensors="pt")["input_features"]


def train_encoder(clips_per_kind: int, steps: int, seed: int) -> tuple[BeatsForAudioClassification, float]:
    """
    A small BEATs that tells which kinds of events are heard and how they sound (loud, high, fast, near, ...), learnt from
    clips with one event each.

    Args:
        clips_per_kind: Clips of each kind to learn from. None of them is in the corpus.
        steps: Optimiser steps, of 32 crops of 3.2 s; in most of them half the crops are mixtures of two events.

    Returns:
        The model, and how many of the events in 100 scenes of its own (1-2 events in 10 s) it finds: of each scene, as many
        kinds are taken as are heard.
    """
    torch.manual_seed(seed)
    rng, clips, labels = generator(seed, 10), [], []
    for kind in tqdm([kind for kind in KINDS for _ in range(clips_per_kind)], desc="events", unit="clip"):
        event = random_event(rng, kind)
        clips.append(features(Scene((event,)), rng))
        labels.append([float(name == kind or name in event.attributes) for name in CLASSES])
    clips, labels = torch.cat(clips), torch.tensor(labels)
    unit = 2 * XacleFeatureExtractor().fbank_std  # of the normalised fbank, in nepers of power
    energy = clips.mean(dim=2)  # [clips, frames]
    audible = energy > energy.amax(dim=1, keepdim=True) - AUDIBLE_DB / 10 * np.log(10) / unit
    audible &= energy > energy.quantile(0.3, dim=1, keepdim=True)
    audible_frames = [np.flatnonzero(frames) for frames in audible.numpy()]

    def crops(chosen: np.ndarray) -> torch.Tensor:
        """A stretch with something to hear of each clip, at a level of its own: `[chosen, CROP_FRAMES, 128]`."""
        rows = []
        for clip in chosen:
            frame = pick(rng, audible_frames[clip])
            start = int(np.clip(frame - rng.integers(CROP_FRAMES), 0, clips.shape[1] - CROP_FRAMES))
            rows.append(clips[clip, start : start + CROP_FRAMES] + 0.1 * rng.standard_normal())
        return torch.stack(rows)

    model = BeatsForAudioClassification(small_beats_config())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for step in tqdm(range(steps), desc="BEATs", unit="step"):
        chosen = rng.integers(len(clips), size=BATCH_SIZE)
        batch, target = crops(chosen), labels[chosen]
        if step >= MIX_AFTER * steps:
            half = BATCH_SIZE // 2
            others = rng.integers(len(clips), size=half)
            # Powers add up, and the fbank is their logarithm; its constant offset does not matter here.
            batch[:half] = torch.logaddexp(unit * batch[:half], unit * crops(others)) / unit
            target[:half] = torch.maximum(target[:half], labels[others])
        loss = F.binary_cross_entropy_with_logits(model(input_features=batch).logits, target) * len(CLASSES)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval(), share_found(model, seed)


@torch.no_grad()
def share_found(model: BeatsForAudioClassification, seed: int, scenes: int = 100) -> float:
    """How many of the events in new scenes the classifier ranks first, 0-1."""
    rng, found, heard = generator(seed, 11), 0, 0
    for _ in range(scenes):
        scene = random_scene(rng)
        logits = model(input_features=features(scene, rng)).logits[0, : len(KINDS)]
        first = {list(KINDS)[index] for index in logits.topk(len(scene.kinds)).indices}
        found, heard = found + len(first & scene.kinds), heard + len(scene.kinds)
    return found / heard


def save_scorer(
    encoder: BeatsForAudioClassification, captions: list[str], folder: Path, seed: int, num_audio_tokens: int = 16
) -> None:
    """Write an untrained scorer around a trained encoder, with a tokenizer trained on `captions`."""
    torch.manual_seed(seed)
    processor = XacleProcessor(XacleFeatureExtractor(), tiny_tokenizer(captions), num_audio_tokens=num_audio_tokens)
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
        num_audio_tokens=num_audio_tokens,
        audio_pooling="time",
        projector_intermediate_size=192,
        weight_sources=[
            weight_source("audio encoder", "a small BEATs, trained on generated sounds", DEMO_LICENSE),
            weight_source("language model", "a small Qwen2 that starts from random weights", DEMO_LICENSE),
        ],
    )
    model = XacleForAlignmentScoring(config)
    model.model.audio_tower.load_state_dict(encoder.beats.state_dict())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_clap(captions: list[str], folder: Path, seed: int) -> None:
    """Write an untrained, small M2D-CLAP that knows the words of `captions`; its patches are 160 ms of all mel bins."""
    torch.manual_seed(seed)
    audio = M2dClapAudioConfig(
        hidden_size=128,
        num_hidden_layers=3,
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
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * audio.hidden_size,
    )
    config = M2dClapConfig(audio_config=audio, text_config=text, text_pooling="mean")
    config.weight_sources = [weight_source("teacher", "a small M2D-CLAP that starts from random weights", DEMO_LICENSE)]
    M2dClapModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
