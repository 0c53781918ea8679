"""`Scorer`: how well sounds match captions, many pairs at a time, nothing computed twice.

sound --decode, cut, fbank (in worker processes)--> windows --encode, each distinct one once--> audio tokens [100, 896]
audio tokens and caption --sorted by length--> batches --language model, head--> ratings --mean over windows--> a pair's

A `Pair` goes in, in the `Clip` it shares with the sound's other captions; its `PairResult` comes out.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice, tee
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from tqdm import tqdm
from transformers.utils import logging

from xacle.core.clips import HASH_BYTES, decode, with_rate
from xacle.core.loading import CLAP_TYPES, DTYPES, check_model_folder, quiet_loading, usable_device
from xacle.core.tables import Pair, is_unicode
from xacle.modeling_xacle import XacleForAlignmentScoring
from xacle.processing_xacle import XacleFeatureExtractor, XacleProcessor
from xacle.scoring.batching import Batches
from xacle.scoring.int8 import quantize_linears
from xacle.scoring.score_files import RATING

logger = logging.get_logger(__name__)

LOOKAHEAD = 4  # batches whose rows are sorted by length together
REMEMBERED = 64  # windows whose audio tokens (360 kB each at full size) are kept for sounds that come again
STATIC_LENGTHS = 64  # a compiled language model sees rows of multiples of so many tokens


@dataclass(slots=True)
class Clip:
    """
    A sound and all pairs that it is part of.

    Args:
        audio: Whatever `load_waveform` takes.
        group: Clips of one group, which stand together in a stream, share batches with no others: their scores are the same
            to the bit wherever a job starts.
    """

    audio: object
    pairs: list[Pair]
    group: int = 0


@dataclass(slots=True)
class PairResult:
    """
    What comes of a pair.

    Args:
        score: Its rating on the 0-10 scale, `None` if it has none.
        error: Why it has none.
        windows: The ratings of the sound's windows, in order of time.
        samples: The lengths of these windows.
    """

    pair: Pair
    score: float | None = None
    error: Exception | None = None
    windows: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Window:
    """
    A stretch of at most 10 s of a sound.

    Args:
        fbank: `[998, 128]`; `None` where an equal window is encoded already, or about to be.
        samples: Its length.
        digest: Of its samples; `None` for what stands for pairs that have failed.
        results: Of the clip's pairs, which wait for the window's ratings.
        group: The clip's.
    """

    fbank: np.ndarray | None
    samples: int
    digest: bytes | None
    results: list[PairResult] = field(default_factory=list)
    group: int = 0


class Row(NamedTuple):
    """A row of the language model's batch: a window's audio tokens `[100, 896]`, and the pair whose caption it has.

    Of pairs that have failed, there are no tokens.
    """

    result: PairResult
    audio: torch.Tensor | None


def load_windows(audio, extractor: XacleFeatureExtractor, window: str) -> list[Window]:
    """A sound -> its windows, ready to be encoded; only the first with `window="first"`."""
    waveform = extractor.fetch_audio(with_rate(audio))
    waveforms = extractor.windows(waveform)[: 1 if window == "first" else None]
    fbanks = extractor(waveforms, sampling_rate=extractor.sampling_rate, return_tensors="np")["input_features"]
    return [
        Window(fbank, len(samples), hashlib.blake2b(samples.tobytes(), digest_size=HASH_BYTES).digest())
        for fbank, samples in zip(fbanks, waveforms, strict=True)
    ]


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

    kind = RATING  # what its scores are

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
            dtype: `"float32"`, `"bfloat16"`, `"float16"`, or on a CPU `"int8"` (see [`quantize_linears`]). The fbank and the
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
            quantize_linears(network)
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
            batch_size: Windows scored at once: a number or `"auto"` (see [`Scorer.results`]). Scores agree to 1e-5.
            window: `"mean"` scores clips over 10 s in windows of 10 s and averages by duration; `"first"` only scores the
                first 10 s, as the authors' code does.
            progress: Whether to show a progress bar.
            workers: Processes that decode files while the model computes; 0 for none.

        Returns:
            Ratings on the 0-10 scale `[pairs]`, float32, in the order given.

        Raises:
            The error of the first clip that cannot be scored, see [`load_waveform`]; also those of [`Scorer.results`].
        """
        check_sounds(audio)
        if isinstance(text, str) or len(audio) != len(text):
            given = repr(text) if isinstance(text, str) else f"{len(text)} captions"
            raise ValueError(f"pass a list of sounds and a list of as many captions, got {len(audio)} sounds and {given}")
        clips: dict[object, Clip] = {}
        for number, (sound, caption) in enumerate(zip(audio, text, strict=True)):
            key = os.fspath(sound) if isinstance(sound, (str, os.PathLike)) else id(sound)
            clips.setdefault(key, Clip(sound, [])).pairs.append(Pair(number, sound, caption))
        scores = np.empty(len(text), dtype=np.float32)
        results = self.results(clips.values(), batch_size, window, workers)
        for result in tqdm(results, total=len(text), disable=not progress):
            if result.error is not None:
                raise result.error
            scores[result.pair.line] = result.score
        return scores

    def score_each(
        self, pairs: Iterable[tuple[object, str]], batch_size: int | str = "auto", window: str = "mean", workers: int = 0
    ) -> Iterator[PairResult]:
        """Like [`Scorer.score`] for a stream of `(audio, caption)`: a result a pair, in order; a bad clip fails alone.

        The stream is read some batches ahead. Sounds that come again soon are decoded again, but not encoded again.
        """
        clips = (Clip(audio, [Pair(number, audio, caption)]) for number, (audio, caption) in enumerate(pairs))
        early: dict[int, PairResult] = {}
        done = 0
        for result in self.results(clips, batch_size, window, workers):
            early[result.pair.line] = result
            while done in early:
                yield early.pop(done)
                done += 1

    # --- From clips to results -------------------------------------------------------------------------------------------

    def results(
        self, clips: Iterable[Clip], batch_size: int | str = "auto", window: str = "mean", workers: int = 0
    ) -> Iterator[PairResult]:
        """A result for every pair of the clips, in the order they get ready. A bad clip fails alone.

        Args:
            clips: A stream; it is read some batches ahead.
            batch_size: Windows encoded, and windows with captions rated, at once: a number, or `"auto"` for 16 on a CPU and
                128 elsewhere, halved whenever memory is short.
            window, workers: See [`Scorer.score`].

        Raises:
            ChildProcessError: if a process that decodes dies.
            MemoryError: if a batch, with `"auto"` even a single row, does not fit into memory.
        """
        if window not in ("mean", "first"):
            raise ValueError(f"window must be 'mean' or 'first', got {window!r}")
        batches = Batches(batch_size, self.model.device, self.max_batch_size, self.static_shapes)
        decoded = self._decoded(clips, window, workers)
        try:
            for _, windows in groupby(decoded, key=lambda window: window.group):
                yield from self._results_of_group(windows, batches)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ChildProcessError(
                f"a process that decodes files died ({error}): was it killed, or memory short? Fewer --workers need less "
                "memory; with --workers 0 this process decodes"
            ) from error

    def _results_of_group(self, windows: Iterable[Window], batches: Batches) -> Iterator[PairResult]:
        rows = self._encoded(windows, batches)
        while pool := list(islice(rows, LOOKAHEAD * batches.size)):
            yield from (row.result for row in pool if row.audio is None)
            pool = [row for row in pool if row.audio is not None]
            pool.sort(key=lambda row: len(row.result.pair.text))  # a stable sort: a pair's windows stay in order
            for row, rating in batches.map(self._rated, pool):
                result = row.result
                result.windows.append(float(rating))
                if len(result.windows) == len(result.samples):
                    average = self.processor.feature_extractor.average_windows(result.windows, result.samples)
                    result.score = float(average)
                    yield result

    def _decoded(self, clips: Iterable[Clip], window: str, workers: int) -> Iterator[Window]:
        """The windows of clips, with the results that wait for them, and one for the pairs of each clip that have failed."""
        load = partial(load_windows, extractor=self.processor.feature_extractor, window=window)
        clips, ahead = tee(clips)
        for windows, clip in zip(decode((clip.audio for clip in ahead), load, workers), clips, strict=True):
            if isinstance(windows, Exception):
                yield Window(None, 0, None, [PairResult(pair, error=windows) for pair in clip.pairs], clip.group)
                continue
            samples, results, failed = [window.samples for window in windows], [], []
            for pair in clip.pairs:
                if isinstance(pair.text, str) and pair.text.strip() and is_unicode(pair.text):
                    results.append(PairResult(pair, samples=samples))
                else:
                    error = ValueError(f"the caption must be a text of valid Unicode, got {pair.text!r}")
                    failed.append(PairResult(pair, error=error))
            if failed:
                yield Window(None, 0, None, failed, clip.group)
            for window in windows if results else ():
                window.results, window.group = results, clip.group
                yield window

    def _encoded(self, windows: Iterable[Window], batches: Batches) -> Iterator[Row]:
        """A row for each window and each of its captions. Windows wait until a batch of new ones has come together."""
        remembered: OrderedDict[bytes, torch.Tensor] = OrderedDict()  # digest -> audio tokens
        waiting, new = [], {}
        for window in windows:
            if window.digest is not None and window.digest not in remembered and window.digest not in new:
                new[window.digest] = window.fbank
            window.fbank = None  # `new` holds those that are needed
            waiting.append(window)
            if len(new) >= batches.size or len(waiting) >= LOOKAHEAD * batches.size:
                yield from self._encode_waiting(waiting, new, remembered, batches)
                waiting, new = [], {}
        yield from self._encode_waiting(waiting, new, remembered, batches)

    def _encode_waiting(
        self, waiting: list[Window], new: dict[bytes, np.ndarray], remembered: OrderedDict, batches: Batches
    ) -> Iterator[Row]:
        remembered.update(batches.map(lambda digests: self.encode([new[digest] for digest in digests]), list(new)))
        for window in waiting:
            if window.digest is not None:
                remembered.move_to_end(window.digest)
            for result in window.results:
                yield Row(result, remembered.get(window.digest))
        while len(remembered) > REMEMBERED:
            remembered.popitem(last=False)

    def _rated(self, rows: list[Row]) -> np.ndarray:
        return self.rate([row.result.pair.text for row in rows], [row.audio for row in rows])

    @torch.inference_mode()
    def encode(self, fbank: Sequence[np.ndarray]) -> torch.Tensor:
        """Windows' fbank `[windows, 998, 128]` -> their audio tokens `[windows, 100, 896]`, the language model's input."""
        return self._encode(torch.from_numpy(np.stack(fbank)).to(self.model.device)).clone()  # out of a CUDA graph's memory

    @torch.inference_mode()
    def rate(self, captions: list[str], audio: Sequence[torch.Tensor]) -> np.ndarray:
        """Captions and audio tokens `[100, 896]`, one each -> ratings `[rows]`, float32."""
        input_ids = self.processor(text=captions, pad_to_multiple_of=STATIC_LENGTHS if self.static_shapes else 1)["input_ids"]
        return self._rate(input_ids.to(self.model.device), torch.stack(list(audio))).cpu().numpy()


def load_scorer(model: str | Path, device: str | None = None, dtype: str = "float32", compiled: bool = False) -> Scorer:
    """The scorer in a folder or Hub repository, by its `model_type`: ours, or a [`ClapScorer`] for any CLAP.

    Args, Raises: See [`Scorer.from_pretrained`].
    """
    if check_model_folder(model, or_clap=True) not in CLAP_TYPES:
        return Scorer.from_pretrained(model, device, dtype, compiled)
    from xacle.scoring.clap_scorer import ClapScorer

    return ClapScorer.from_pretrained(model, device, dtype, compiled)
