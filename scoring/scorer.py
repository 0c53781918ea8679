"""Scoring many pairs: `Scorer` loads a model folder and rates sounds against captions in batches."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from tqdm import tqdm

from xacle.configuration_xacle import XacleConfig
from xacle.modeling_xacle import XacleForAlignmentScoring
from xacle.processing_xacle import SAMPLING_RATE, XacleProcessor, load_waveform
from xacle.scoring.tables import is_unicode

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def usable_device(device: str | None = None) -> torch.device:
    """A device by name, checked with a first tensor; the best there is if `None`. Raises `ValueError` if it cannot be used."""
    if device is None:
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it computes nothing")
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the device '{device}' cannot be used here ({reason}); try --device cpu") from error


def check_model_folder(model: str | Path) -> None:
    """Raise an error that helps if `model` is neither a folder with a scorer nor a Hub id."""
    folder = Path(model)
    if not folder.is_dir() and (folder.exists() or re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(model)) is None):
        raise FileNotFoundError(f"no model folder at '{model}' (and it is no Hub id, which looks like owner/name)")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"'{model}' is a LoRA adapter without its base: AutoModel.from_pretrained loads both; `--lora_output merged` makes "
            "a folder that xacle's commands load"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"'{model}' is no model folder: it has no config.json")
    config, _ = XacleConfig.get_config_dict(model)
    if config.get("model_type") != XacleConfig.model_type:
        raise ValueError(
            f"'{model}' holds a model of type {config.get('model_type')!r}, not an xacle scorer; a checkpoint in the authors' "
            "format (config.json and model.pt) is converted with `xacle convert tmu`"
        )
    for name in ("processor_config.json", "tokenizer_config.json", "tokenizer.json") if folder.is_dir() else ():
        try:
            json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(f"'{model}' has no {name}; save the processor beside the model") from error
        except ValueError as error:
            raise ValueError(f"'{folder / name}' is damaged ({error}); copy or download it again") from error


@dataclass
class PairResult:
    """One pair's rating, or why it has none. `windows` holds the windows' ratings, in order of time."""

    score: float | None = None
    error: Exception | None = None
    windows: list[float] = field(default_factory=list)


@dataclass
class _Window:
    """A stretch of at most 10 s of one clip, waiting to be scored."""

    pair: int
    caption: str
    waveform: np.ndarray


def _is_array(audio) -> bool:
    return isinstance(audio, (np.ndarray, torch.Tensor, list, tuple))


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

    @classmethod
    def from_pretrained(cls, model: str | Path, device: str | None = None, dtype: str = "float32") -> "Scorer":
        """Load a model folder or Hub repository with this package's classes; no code of the folder is executed.

        Args:
            model: Folder or Hub id.
            device: `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`...; the best one there is if `None`.
            dtype: `"float32"`, `"bfloat16"` or `"float16"`. The fbank and the score head stay in float32.

        Raises:
            FileNotFoundError, ValueError: if there is no such model, it is of another type, damaged or lacks weights (a
                captioner has no score head), or the device or dtype cannot be used.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        device = usable_device(device)
        check_model_folder(model)
        try:
            network, loaded = XacleForAlignmentScoring.from_pretrained(model, dtype=DTYPES[dtype], output_loading_info=True)
            processor = XacleProcessor.from_pretrained(model)
        except SafetensorError as error:
            raise ValueError(f"the weights in '{model}' are damaged ({error}); copy or download them again") from error
        if missing := sorted(loaded["missing_keys"]):
            raise ValueError(f"'{model}' lacks {', '.join(missing)}: its scores would be random. Was it trained to score?")
        return cls(network.to(device), processor)

    def score(
        self, audio: Sequence, text: Sequence[str], batch_size: int = 16, window: str = "mean", progress: bool = False
    ) -> np.ndarray:
        """
        Args:
            audio: Sounds, by path, URL, bytes, dict or 16 kHz array.
            text: A caption for each.
            batch_size: Windows scored at once. Scores agree to 1e-5 whatever it is.
            window: `"mean"` scores clips over 10 s in windows of 10 s and averages by duration; `"first"` only scores the
                first 10 s, as the authors' code does.
            progress: Whether to show a progress bar.

        Returns:
            Ratings on the 0-10 scale `[pairs]`, float32, in the order given.

        Raises:
            The error of the first pair that cannot be scored, see [`load_waveform`].
        """
        if isinstance(text, str) or len(audio) != len(text):
            given = repr(text) if isinstance(text, str) else f"{len(text)} captions"
            raise ValueError(f"pass a list of sounds and a list of as many captions, got {len(audio)} sounds and {given}")
        results = []
        pairs = tqdm(self.score_each(zip(audio, text, strict=True), batch_size, window), total=len(text), disable=not progress)
        for result in pairs:
            if result.error is not None:
                raise result.error
            results.append(result.score)
        return np.array(results, dtype=np.float32)

    def score_each(
        self, pairs: Iterable[tuple[object, str]], batch_size: int = 16, window: str = "mean"
    ) -> Iterator[PairResult]:
        """Like [`Scorer.score`] for a stream of `(audio, caption)`: a result a pair, in order; a bad clip sinks only itself."""
        if window not in ("mean", "first"):
            raise ValueError(f"window must be 'mean' or 'first', got {window!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        results: dict[int, PairResult] = {}
        durations: dict[int, list[int]] = {}
        waiting: list[_Window] = []
        done = 0

        def finished() -> Iterator[PairResult]:
            nonlocal done
            while done in results and len(results[done].windows) == len(durations[done]):
                result, samples = results.pop(done), durations.pop(done)
                if result.error is None:
                    result.score = float(np.average(result.windows, weights=samples).astype(np.float32))
                done += 1
                yield result

        for index, (audio, caption) in enumerate(pairs):
            results[index], durations[index] = PairResult(), []
            try:
                if not isinstance(caption, str) or not caption.strip() or not is_unicode(caption):
                    raise ValueError(f"the caption must be a text, got {caption!r}")
                extractor = self.processor.feature_extractor
                windows = extractor.windows(load_waveform(audio, SAMPLING_RATE if _is_array(audio) else None))
            except (OSError, ValueError, TypeError) as error:
                results[index].error = error
                windows = []
            for waveform in windows[: 1 if window == "first" else None]:
                waiting.append(_Window(index, caption, waveform))
                durations[index].append(len(waveform))
            while len(waiting) >= batch_size:
                self._score_batch(waiting[:batch_size], results)
                del waiting[:batch_size]
            yield from finished()
        if waiting:
            self._score_batch(waiting, results)
        yield from finished()

    @torch.inference_mode()
    def _score_batch(self, windows: list[_Window], results: dict[int, PairResult]) -> None:
        """Score windows together, encoding each distinct one once, and add the ratings to the results of their pairs."""
        clips: dict[bytes, int] = {}
        audio_index = [clips.setdefault(window.waveform.tobytes(), len(clips)) for window in windows]
        distinct = [windows[audio_index.index(clip)].waveform for clip in range(len(clips))]
        inputs = self.processor(text=[window.caption for window in windows])
        inputs.update(self.processor.feature_extractor(distinct, sampling_rate=SAMPLING_RATE, return_tensors="pt"))
        inputs["audio_index"] = torch.tensor(audio_index)
        scores = self.model(**inputs.to(self.model.device)).scores.cpu().numpy()
        for window, score in zip(windows, scores, strict=True):
            results[window.pair].windows.append(float(score))
