"""What everything is measured with: a model with random weights, sounds and captions."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile as sf
import torch

from xacle.audio_xacle import SAMPLING_RATE
from xacle.configuration_xacle import XacleConfig
from xacle.demo.tiny_models import tiny_config, tiny_tokenizer
from xacle.modeling_xacle import XacleForAlignmentScoring
from xacle.processing_xacle import XacleFeatureExtractor, XacleProcessor

SENTENCE = "a dog barks while the rain falls on an old roof and two people talk near some passing cars"
CAPTION_WORDS = 12
GPU_PAIRS = 512
EXACT = 1e-4  # on the 0-10 scale: logits that agree to 1e-5, times score_scale, and a little for the order of sums


@dataclass
class Bench:
    """What everything is measured with: a saved model, ten-second sounds with a caption each, and how much to do."""

    folder: Path
    model: XacleForAlignmentScoring
    processor: XacleProcessor
    sounds: list[Path]
    captions: list[str]
    batch_sizes: tuple[int, ...]
    memory_batches: tuple[int, ...]
    rows: tuple[int, ...]
    repeats: int
    device: str
    ratios: dict[str, float] = field(default_factory=dict)  # CPU time of the baseline over ours
    failures: list[str] = field(default_factory=list)

    def check(self, what: str, difference: float) -> float:
        """Note a difference between ours and the baseline that is too large; reported once all has run."""
        if not difference <= EXACT:
            self.failures.append(f"{what}: results differ by {difference:.1e}")
        return difference


def build(folder: Path, full: bool, batch_sizes: tuple[int, ...], rows: tuple[int, ...]) -> Bench:
    """A model with random weights in `folder/model`, and noise of different loudness in `folder/*.wav`."""
    rng = np.random.default_rng(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sounds = [folder / f"{number}.wav" for number in range(GPU_PAIRS if device == "cuda" else max(16, *batch_sizes))]
    for path in sounds:
        sf.write(path, rng.uniform(0.01, 0.1) * rng.standard_normal(10 * SAMPLING_RATE), SAMPLING_RATE)
    captions = [" ".join(rng.choice(SENTENCE.split(), CAPTION_WORDS)) for _ in sounds]
    processor = XacleProcessor(XacleFeatureExtractor(), tiny_tokenizer([*captions, SENTENCE]))
    ids = {name: getattr(processor, name) for name in XacleConfig.special_token_names}
    ids |= {name: getattr(processor.tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
    torch.manual_seed(0)
    model = XacleForAlignmentScoring(XacleConfig(**ids) if full else tiny_config(processor)).eval()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    memory_batches, repeats = ((1, 16), 2) if full else ((1,), 1)
    return Bench(folder, model, processor, sounds, captions, batch_sizes, memory_batches, rows, repeats, device)
