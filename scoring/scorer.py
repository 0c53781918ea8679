"""Scoring many pairs: `Scorer` loads a model folder and rates sounds against captions in batches."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from tqdm import tqdm
from transformers.utils import logging

from xacle.core.loading import DTYPES, check_model_folder, quiet_loading, usable_device
from xacle.modeling_xacle import XacleForAlignmentScoring
from xacle.processing_xacle import XacleProcessor
from xacle.scoring.engine import Clip, Engine, PairResult
from xacle.scoring.int8 import quantise_linears

logger = logging.get_logger(__name__)

STATIC_LENGTHS = 64  # a compiled language model sees rows of multiples of so many tokens


def check_sounds(audio: Sequence) -> None:
    """Raise `ValueError` if `audio` is one sound rather than several."""
    is_array = isinstance(audio, torch.Tensor) or (isinstance(audio, np.ndarray) and audio.dtype.kind in "iuf")
    samples = is_array and audio.ndim == 1
    if samples or isinstance(audio, (str, bytes, os.PathLike, dict)):
        given = "samples" if samples else repr(audio)[:100]
        raise ValueError(f"pass a list of sounds, [sound] if there is one; got {given}")


class Scorer:
    """
    Rates how well sounds match captions.

    ```python
    scorer = Scorer.from_pretrained("path/or/hub-id")
    scorer.score(["dog.wav", "rain.flac"], ["A dog barks", "Rain falls"])
    ```

    Args:
        model: An [`XacleForAlignmentScoring`].
        processor: Its [`XacleProcessor`].
    """

    def __init__(self, model: XacleForAlignmentScoring, processor: XacleProcessor):
        self.model = model.eval()
        self.processor = processor
        self.max_batch_size: int | None = None
        self.static_shapes = False

    def compile(self) -> None:
        """Compile encoder and language model for batches of one size and rows of few lengths; CUDA graphs on CUDA.

        The first batch of each length takes a minute or so: it pays for large tables.
        """
        mode = "reduce-overhead" if self.model.device.type == "cuda" else "default"
        self._encode = torch.compile(self._encode, dynamic=False, mode=mode)
        self._rate = torch.compile(self._rate, dynamic=False, mode=mode)
        self.static_shapes = True

    def _encode(self, input_features: torch.Tensor) -> torch.Tensor:
        return self.model.get_audio_features(input_features).pooler_output

    def _rate(self, input_ids: torch.Tensor, audio_embeds: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, audio_embeds=audio_embeds).scores

    @classmethod
    def from_pretrained(
        cls, model: str | Path, device: str | None = None, dtype: str = "float32", compiled: bool = False
    ) -> "Scorer":
        """Load a model folder or Hub repository with this package's classes; no code of the folder is executed.

        Args:
            model: Folder or Hub id.
            device: `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`...; the best one there is if `None`.
            dtype: `"float32"`, `"bfloat16"`, `"float16"`, or on a CPU `"int8"` (see [`quantise_linears`]). The fbank and the
                score head stay in float32.
            compiled: See [`Scorer.compile`].

        Raises:
            FileNotFoundError, ValueError: if there is no such model, it is of another type, damaged or lacks weights (a
                captioner has no score head), or the device or dtype cannot be used.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if compiled and dtype == "int8":
            raise ValueError("an int8 model cannot be compiled; leave out --compile, or try another --dtype")
        device = usable_device(device, dtype)
        check_model_folder(model)
        try:
            with quiet_loading():
                weights = {"dtype": DTYPES[dtype], "output_loading_info": True}
                network, loaded = XacleForAlignmentScoring.from_pretrained(model, **weights)
            processor = XacleProcessor.from_pretrained(model)
        except SafetensorError as error:
            raise ValueError(f"the weights in '{model}' are damaged ({error}); copy or download them again") from error
        if missing := sorted(loaded["missing_keys"]):
            raise ValueError(f"'{model}' lacks {', '.join(missing)}: its scores would be random. Was it trained to score?")
        if unexpected := sorted(loaded["unexpected_keys"]):
            logger.warning(f"'{model}' holds weights that a scorer has not, left out: {', '.join(unexpected[:5])}")
        scorer = cls(network.to(device), processor)
        if dtype == "int8":
            quantise_linears(network)
            scorer.max_batch_size = 1
        if compiled:
            scorer.compile()
        return scorer

    def score(
        self,
        audio: Sequence,
        text: Sequence[str],
        batch_size: int | str = "auto",
        window: str = "mean",
        progress: bool = False,
        workers: int = 0,
    ) -> np.ndarray:
        """
        Args:
            audio: Sounds, by path, URL, bytes, dict or 16 kHz array. One that is given several times is encoded once.
            text: A caption for each.
            batch_size: Windows scored at once: a number or `"auto"`, see [`Engine`]. Scores agree to 1e-5 whatever it is.
            window: `"mean"` scores clips over 10 s in windows of 10 s and averages by duration; `"first"` only scores the
                first 10 s, as the authors' code does.
            progress: Whether to show a progress bar.
            workers: Processes that decode files while the model computes; 0 for none.

        Returns:
            Ratings on the 0-10 scale `[pairs]`, float32, in the order given.

        Raises:
            The error of the first clip that cannot be scored, see [`load_waveform`]; also those of [`Engine.results`].
        """
        check_sounds(audio)
        if isinstance(text, str) or len(audio) != len(text):
            given = repr(text) if isinstance(text, str) else f"{len(text)} captions"
            raise ValueError(f"pass a list of sounds and a list of as many captions, got {len(audio)} sounds and {given}")
        clips: dict[object, Clip] = {}
        for pair, (sound, caption) in enumerate(zip(audio, text, strict=True)):
            key = os.fspath(sound) if isinstance(sound, (str, os.PathLike)) else id(sound)
            clips.setdefault(key, Clip(sound, [])).captions.append((pair, caption))
        scores = np.empty(len(text), dtype=np.float32)
        engine = Engine(self, batch_size, window, workers)
        for pair, result in tqdm(engine.results(clips.values()), total=len(text), disable=not progress):
            if result.error is not None:
                raise result.error
            scores[pair] = result.score
        return scores

    def score_each(
        self, pairs: Iterable[tuple[object, str]], batch_size: int | str = "auto", window: str = "mean", workers: int = 0
    ) -> Iterator[PairResult]:
        """Like [`Scorer.score`] for a stream of `(audio, caption)`: a result a pair, in order; a bad clip sinks only itself.

        The stream is read some batches ahead. Sounds that come again soon are decoded again, but not encoded again.
        """
        clips = (Clip(audio, [(pair, caption)]) for pair, (audio, caption) in enumerate(pairs))
        early: dict[int, PairResult] = {}
        done = 0
        for pair, result in Engine(self, batch_size, window, workers).results(clips):
            early[pair] = result
            while done in early:
                yield early.pop(done)
                done += 1

    @torch.inference_mode()
    def encode(self, fbank: Sequence[np.ndarray]) -> torch.Tensor:
        """Windows' fbank `[windows, 998, 128]` -> their audio tokens `[windows, 100, 896]`, the language model's input."""
        return self._encode(torch.from_numpy(np.stack(fbank)).to(self.model.device)).clone()  # out of a CUDA graph's memory

    @torch.inference_mode()
    def rate(self, captions: list[str], audio: Sequence[torch.Tensor]) -> np.ndarray:
        """Captions and audio tokens `[100, 896]`, one each -> ratings `[rows]`, float32."""
        input_ids = self.processor(text=captions, pad_to_multiple_of=STATIC_LENGTHS if self.static_shapes else 1)["input_ids"]
        return self._rate(input_ids.to(self.model.device), torch.stack(list(audio))).cpu().numpy()
