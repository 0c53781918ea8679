"""The scoring engine: sounds with their captions in, ratings out, nothing computed twice.

sound --decode, cut, fbank (in worker processes)--> windows --encode, each distinct one once--> audio tokens [100, 896]
audio tokens and caption --sorted by length--> batches --language model, head--> ratings --mean over windows--> a pair's
"""

import hashlib
import signal
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers.utils import logging

from xacle.audio_xacle import SAMPLING_RATE, load_waveform
from xacle.core.tables import is_unicode
from xacle.processing_xacle import XacleFeatureExtractor

logger = logging.get_logger(__name__)

CPU_BATCH_SIZE, ACCELERATOR_BATCH_SIZE = 16, 128  # what "auto" starts with: a CPU gains nothing from larger ones
LOOKAHEAD = 4  # batches whose rows are sorted by length together
REMEMBERED = 64  # windows whose audio tokens (360 kB each at full size) are kept for sounds that come again


@dataclass
class Clip:
    """A sound (whatever `load_waveform` takes) and its captions, each with the number of its pair."""

    audio: object
    captions: list[tuple[int, str]]


@dataclass
class PairResult:
    """One pair's rating, or why it has none. `windows` holds the windows' ratings, in order of time."""

    score: float | None = None
    error: Exception | None = None
    windows: list[float] = field(default_factory=list)


@dataclass
class Window:
    """A stretch of at most 10 s of a sound: its fbank `[998, 128]`, its length in samples, a digest of these."""

    fbank: np.ndarray
    samples: int
    digest: bytes


@dataclass
class _Row:
    """One window with one caption: a row of a batch."""

    pair: int
    caption: str
    audio: torch.Tensor  # the window's audio tokens `[100, 896]`
    window: int
    samples: list[int]  # of each window of the sound


# --- Decoding ------------------------------------------------------------------------------------------------------------


class _Decoder(Dataset):
    """Sound -> windows; what cannot be decoded comes back as its error."""

    def __init__(self, extractor: XacleFeatureExtractor, window: str):
        self.extractor, self.window = extractor, window

    def __getitem__(self, audio) -> list[Window] | Exception:
        is_array = isinstance(audio, (np.ndarray, torch.Tensor, list, tuple))
        try:
            waveform = load_waveform(audio, SAMPLING_RATE if is_array else None)
        except (OSError, ValueError, TypeError) as error:
            return error
        waveforms = self.extractor.windows(waveform)[: 1 if self.window == "first" else None]
        fbanks = self.extractor(waveforms, sampling_rate=SAMPLING_RATE, return_tensors="np")["input_features"]
        return [
            Window(fbank, len(waveform), hashlib.blake2b(waveform.tobytes(), digest_size=16).digest())
            for fbank, waveform in zip(fbanks, waveforms, strict=True)
        ]


def _as_it_is(decoded):
    return decoded


def _leave_interrupts_to_the_parent(_) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def decode(
    clips: Iterable[Clip], extractor: XacleFeatureExtractor, window: str, workers: int
) -> Iterator[tuple[Clip, list[Window] | Exception]]:
    """Each clip with its windows, or with why it has none; `workers` processes decode ahead, 0 for this one."""
    underway: deque[Clip] = deque()

    def sounds():
        for clip in clips:
            underway.append(clip)
            yield clip.audio

    # The stream of sounds takes the place of a sampler's indices: workers get one each, in turn.
    loader = DataLoader(
        _Decoder(extractor, window),
        sampler=sounds(),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_interrupts_to_the_parent,
        generator=torch.Generator(),
    )
    for decoded in loader:
        yield underway.popleft(), decoded


# --- Scoring -------------------------------------------------------------------------------------------------------------


class Engine:
    """
    Scores one job's clips with a [`Scorer`].

    Args:
        scorer: Its `encode` and `rate` do the computing.
        batch_size: Windows encoded, and windows with captions rated, at once. `"auto"` starts with 16 on a CPU and 128
            elsewhere, and halves this whenever memory is short.
        window: `"mean"` or `"first"`, see [`Scorer.score`].
        workers: Processes that decode.
    """

    def __init__(self, scorer, batch_size: int | str = "auto", window: str = "mean", workers: int = 0):
        if window not in ("mean", "first"):
            raise ValueError(f"window must be 'mean' or 'first', got {window!r}")
        self.backs_off = batch_size == "auto"
        if self.backs_off:
            batch_size = CPU_BATCH_SIZE if scorer.model.device.type == "cpu" else ACCELERATOR_BATCH_SIZE
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be 'auto' or at least 1, got {batch_size!r}")
        self.batch_size = min(batch_size, scorer.max_batch_size or batch_size)
        self.scorer, self.window, self.workers = scorer, window, workers
        self.remembered: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def results(self, clips: Iterable[Clip]) -> Iterator[tuple[int, PairResult]]:
        """A result for every pair, with its number, in the order they get ready. A bad clip sinks only its pairs.

        Raises:
            ChildProcessError: if a process that decodes dies.
            MemoryError: if a batch, with `"auto"` even a single row, does not fit into memory.
        """
        try:
            yield from self._results(clips)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ChildProcessError(
                f"a process that decodes files died ({error}): was it killed, or memory short? Fewer --workers need less "
                "memory; with --workers 0 this process decodes"
            ) from error

    def _results(self, clips: Iterable[Clip]) -> Iterator[tuple[int, PairResult]]:
        failed: deque[tuple[int, PairResult]] = deque()  # left here by the stages before the rating
        ratings: dict[int, dict[int, float]] = {}  # pair -> window -> rating, of pairs that wait for more windows
        rows = self._rows(self._encoded(self._decoded(clips, failed)))
        while pool := list(islice(rows, LOOKAHEAD * self.batch_size)):
            pool.sort(key=lambda row: len(row.caption))
            for row, rating in self._in_batches(pool, self._rate):
                rated = ratings.setdefault(row.pair, {})
                rated[row.window] = float(rating)
                if len(rated) == len(row.samples):
                    del ratings[row.pair]
                    windows = [rated[window] for window in range(len(row.samples))]
                    score = float(np.average(windows, weights=row.samples).astype(np.float32))
                    yield row.pair, PairResult(score, windows=windows)
            while failed:
                yield failed.popleft()
        yield from failed

    def _decoded(self, clips: Iterable[Clip], failed: deque) -> Iterator[tuple[Clip, list[Window]]]:
        """Clips that can be scored, with their windows; the other pairs go to `failed`."""
        for clip, windows in decode(clips, self.scorer.processor.feature_extractor, self.window, self.workers):
            if isinstance(windows, Exception):
                failed.extend((pair, PairResult(error=windows)) for pair, _ in clip.captions)
                continue
            good = []
            for pair, caption in clip.captions:
                if isinstance(caption, str) and caption.strip() and is_unicode(caption):
                    good.append((pair, caption))
                else:
                    failed.append((pair, PairResult(error=ValueError(f"the caption must be a text, got {caption!r}"))))
            if good:
                yield Clip(clip.audio, good), windows

    def _encoded(self, decoded: Iterable[tuple[Clip, list[Window]]]) -> Iterator[tuple[Clip, list[int], int, torch.Tensor]]:
        """Clip, samples of its windows, number of the window, its audio tokens: window by window, in order."""
        waiting, new = [], {}
        for clip, windows in decoded:
            samples = [window.samples for window in windows]
            for number, window in enumerate(windows):
                known = self.remembered.get(window.digest)
                if known is None:
                    new[window.digest] = window.fbank
                waiting.append((clip, samples, number, window.digest, known))
                if len(new) >= self.batch_size or len(waiting) >= LOOKAHEAD * self.batch_size:
                    yield from self._encode_waiting(waiting, new)
                    waiting, new = [], {}
        yield from self._encode_waiting(waiting, new)

    def _encode_waiting(self, waiting: list[tuple], new: dict[bytes, np.ndarray]):
        encoded = dict(self._in_batches(list(new), lambda digests: self.scorer.encode([new[digest] for digest in digests])))
        for clip, samples, number, digest, known in waiting:
            tokens = encoded[digest] if known is None else known
            self.remembered[digest] = tokens
            self.remembered.move_to_end(digest)
            yield clip, samples, number, tokens
        while len(self.remembered) > REMEMBERED:
            self.remembered.popitem(last=False)

    def _rows(self, encoded) -> Iterator[_Row]:
        for clip, samples, number, tokens in encoded:
            for pair, caption in clip.captions:
                yield _Row(pair, caption, tokens, number, samples)

    def _rate(self, rows: list[_Row]) -> np.ndarray:
        return self.scorer.rate([row.caption for row in rows], [row.audio for row in rows])

    def _in_batches(self, items: list, compute: Callable[[list], Sequence]) -> Iterator[tuple]:
        """Each item with what `compute` makes of it; in smaller batches from the first that does not fit into memory on."""
        start = 0
        while start < len(items):
            batch = items[start : start + self.batch_size]
            size = self.batch_size if self.scorer.static_shapes else len(batch)
            try:
                computed = compute(batch + batch[-1:] * (size - len(batch)))[: len(batch)]
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if not self.backs_off or size == 1:
                    advice = "a smaller --batch-size" if size > 1 else "--dtype bfloat16"
                    raise MemoryError(f"not enough memory for batches of {size}: try {advice} ({error})") from None
                computed = None
            if computed is None:  # here, where no traceback holds the batch's tensors any more
                self.batch_size = size // 2
                logger.warning(f"not enough memory for batches of {size}: going on with {self.batch_size}")
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            yield from zip(batch, computed, strict=True)
            start += len(batch)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)
