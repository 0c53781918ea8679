"""Any CLAP in the place of a scorer: the cosine of a sound's and a caption's embedding, known as CLAPScore.

A cosine is from -1 to 1 and no rating: only its order can be compared with people's.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from xacle.clap.encoder import ClapEncoder, ClapFrontEnd
from xacle.processing_xacle import XacleFeatureExtractor
from xacle.scoring.score_files import COSINE
from xacle.scoring.scorer import Scorer


class ClapWindows:
    """A CLAP's sounds in windows, with the methods of [`XacleFeatureExtractor`] that scoring uses.

    Windows have the length of the CLAP's input, 10 s; the last holds the rest. None is cropped.
    """

    average_windows = XacleFeatureExtractor.average_windows

    def __init__(self, front_end: ClapFrontEnd):
        self.front_end = front_end
        self.sampling_rate = front_end.sampling_rate

    def fetch_audio(self, audio) -> np.ndarray:
        return self.front_end.load(audio)

    def windows(self, waveform: np.ndarray) -> list[np.ndarray]:
        longest = self.front_end.max_samples
        return [waveform[start : start + longest] for start in range(0, len(waveform), longest)]

    def __call__(self, waveforms: list[np.ndarray], **_) -> dict[str, list[dict[str, np.ndarray]]]:
        """The model's audio inputs of each window. A rest that is too short for M2D-CLAP (12.6 ms) is padded with silence."""
        least = self.front_end.min_samples
        padded = [np.pad(waveform, (0, max(0, least - len(waveform)))) for waveform in waveforms]
        inputs = [self.front_end.audio_inputs([waveform]) for waveform in padded]
        return {"input_features": [{name: tensor[0].numpy() for name, tensor in window.items()} for window in inputs]}


class ClapScorer(Scorer):
    """
    Scores pairs by a CLAP, with all that [`Scorer`] does: each sound is encoded once, long ones in windows of 10 s.

    ```python
    scorer = ClapScorer.from_pretrained("laion/clap-htsat-fused")
    scorer.score(["dog.wav"], ["A dog barks"])  # cosines, from -1 to 1
    ```

    Args:
        clap: The CLAP; see [`ClapEncoder`] for which there are.
    """

    kind = COSINE

    def __init__(self, clap: ClapEncoder):
        super().__init__(clap.model, SimpleNamespace(feature_extractor=ClapWindows(clap.front_end)))  # what results() reads
        self.clap = clap

    @classmethod
    def from_pretrained(
        cls, model: str | Path, device: str | None = None, dtype: str = "float32", compiled: bool = False
    ) -> "ClapScorer":
        """See [`ClapEncoder.from_pretrained`]. Raises `ValueError` if anything but float32, or compiling, is asked for."""
        if dtype != "float32" or compiled:
            raise ValueError(f"'{model}' is a CLAP, which computes in float32, uncompiled; leave out --dtype and --compile")
        return cls(ClapEncoder.from_pretrained(model, device))

    @torch.inference_mode()
    def encode(self, fbank: Sequence[dict[str, np.ndarray]]) -> torch.Tensor:
        """Windows' inputs, see [`ClapWindows`] -> their embeddings `[windows, embedding_size]`, of length 1."""
        batch = {name: [torch.from_numpy(np.asarray(window[name])) for window in fbank] for name in fbank[0]}
        # Only M2D-CLAP's inputs differ in length; it is given the lengths.
        inputs = {name: pad_sequence(rows, True) if rows[0].ndim else torch.stack(rows) for name, rows in batch.items()}
        return self.clap.embed_audio_inputs(inputs)

    @torch.inference_mode()
    def rate(self, captions: list[str], audio: Sequence[torch.Tensor]) -> np.ndarray:
        """Captions and embeddings of windows, one each -> cosines `[rows]`, float32."""
        distinct = list(dict.fromkeys(captions))
        embedded = dict(zip(distinct, self.clap.embed_text(distinct), strict=True))
        text = torch.stack([embedded[caption] for caption in captions])
        return (torch.stack(list(audio)) * text).sum(dim=-1).clamp(-1.0, 1.0).cpu().numpy()
