"""Cut the small golden set of this folder out of the full one: `python tests/golden/trim.py ../shared/golden`."""

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

MAX_GRAD = 12_000  # larger gradients stay in the full set
SHORT = 2  # the clip of 3 s, padded to 10 s


def trim(full: Path, here: Path) -> None:
    beats = load_file(full / "beats_tiny/golden.safetensors")
    tmu = load_file(full / "tmu_tiny/golden.safetensors")
    train = load_file(full / "tmu_tiny/golden_train.safetensors")
    kept = {
        "fbank": tmu["waveforms_fbank"][SHORT, :304],
        "short_wave": beats["short_wave"],
        "a.latents": beats["a.latents"][SHORT],
        "b.latents": beats["b.latents"][SHORT],
        "a.masked_latents": beats["a.masked_latents"][SHORT],
        "b.masked_latents": beats["b.masked_latents"][SHORT],
        "frame_padding_mask": beats["a.frame_padding_mask"][SHORT],
        "token_padding_mask": beats["a.token_padding_mask"][SHORT],
        "a.short_latents": beats["a.short_latents"],
        "b.short_latents": beats["b.short_latents"],
        "b.lprobs": beats["b.lprobs"][SHORT],
        "pooled": tmu["batch.pooled"],
        "cross_scores": tmu["cross_scores"],
    }
    kept |= {f"train.{name}": tensor for name, tensor in train.items() if tensor.numel() <= MAX_GRAD}
    (here / "tmu/qwen_tiny").mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in kept.items()}, here / "golden.safetensors")
    for name in ("beats_tiny_a.pt", "beats_tiny_b.pt"):
        shutil.copyfile(full / "beats_tiny" / name, here / name)
    for name in ("config.json", "model.pt", "inputs.json"):
        shutil.copyfile(full / "tmu_tiny" / name, here / "tmu" / name)
    for name in ("qwen_tiny/config.json", "qwen_tiny/tokenizer.json", "qwen_tiny/tokenizer_config.json"):
        shutil.copyfile(full / "tmu_tiny" / name, here / "tmu" / name)
    shutil.copyfile(full / "tmu_tiny/audio/short_3s.wav", here / "short_3s.wav")
    shutil.copyfile(full / "tmu_full_keys.txt", here / "tmu_full_keys.txt")


if __name__ == "__main__":
    trim(Path(sys.argv[1]), Path(__file__).parent)
