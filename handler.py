"""Hugging Face Inference Endpoints: JSON in, scores out. This file travels with the model and needs no package of its own.

    {"inputs": {"audio": "<base64, data: or http(s) URL>", "text": "A dog barks"}}    -> {"score": 7.9}
    {"inputs": {"audio": ..., "text": ["A dog barks", "Rain falls"]}}                 -> {"scores": [7.9, 1.2]}
    {"inputs": [{"audio": ..., "text": ...}, ...]}                                    -> one result each, in order

`audio` is a whole file (wav, flac, ogg, mp3). A clip over 10 s is scored in windows of 10 s, averaged by duration; the result
then has `windows` as well. `"parameters": {"window": "first"}` takes the first 10 s only. An audio file as the request's body
(`Content-Type: audio/...`) needs its caption in the parameters: `{"inputs": <bytes>, "parameters": {"text": ...}}`, which an
endpoint makes of the query `?text=A+dog+barks`.

An item that cannot be scored returns `{"error": {"item": 2, "message": "..."}}`, with its number in the list, counted from 0;
the other items are scored. The endpoint fetches the URLs it is given: keep it private if its network must stay private.
"""

import base64
import binascii
import re
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModel, AutoProcessor

BATCH_SIZE = 16  # windows encoded, or pairs of a window and a caption scored, at once
WINDOWS = ("mean", "first")


@dataclass
class Item:
    """One item of a request, decoded: the sound's windows `[samples]` and its captions. `several`: they came as a list."""

    windows: list[np.ndarray]
    captions: list[str]
    several: bool


class EndpointHandler:
    """
    Args:
        path: The model's folder, or its Hub id.
    """

    def __init__(self, path: str = ""):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        self.model = AutoModel.from_pretrained(path, trust_remote_code=True).to(device).eval()

    def __call__(self, data: dict) -> dict | list[dict]:
        """See the module's description. Returns a result for a single item, and a list of results for a list."""
        if not isinstance(data, dict) or "inputs" not in data:
            return failure(None, "the request must be a JSON object with 'inputs'")
        inputs, parameters = data["inputs"], data.get("parameters") or {}
        if not isinstance(parameters, dict) or parameters.get("window", "mean") not in WINDOWS:
            return failure(None, f"'parameters' must be an object, its 'window' one of {', '.join(WINDOWS)}")
        if isinstance(inputs, (bytes, bytearray)):
            if not parameters.get("text"):
                return failure(None, "a file as the request's body needs its caption in parameters.text (?text=A+dog+barks)")
            inputs = {"audio": inputs, "text": parameters["text"]}
        if isinstance(inputs, list):
            return self.score_items(inputs, parameters.get("window", "mean"))
        return self.score_items([inputs], parameters.get("window", "mean"))[0]

    def score_items(self, items: list, window: str) -> list[dict]:
        """A result for each item, in order; an error for each that cannot be scored."""
        results, prepared = {}, {}
        for number, item in enumerate(items):
            try:
                prepared[number] = self.prepare(item, window)
            except Exception as error:  # whatever is wrong with one item, the others are scored
                results[number] = failure(number, str(error) or type(error).__name__)
        results |= self.score(prepared)
        return [results[number] for number in range(len(items))]

    def prepare(self, item, window: str) -> Item:
        """Check and decode an item. Raises whatever is wrong with it."""
        if not isinstance(item, dict) or not {"audio", "text"} <= item.keys():
            got = sorted(map(str, item)) if isinstance(item, dict) else type(item).__name__
            raise ValueError(f"each input must be an object with 'audio' and 'text', got {got}")
        several = isinstance(item["text"], list)
        captions = item["text"] if several else [item["text"]]
        if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
            raise ValueError("'text' must be a caption or a list of captions")
        extractor = self.processor.feature_extractor
        windows = extractor.windows(extractor.fetch_audio(sound_of(item["audio"])))
        return Item(windows[: 1 if window == "first" else None], captions, several)

    def score(self, prepared: dict[int, Item]) -> dict[int, dict]:
        """Results of items by their numbers, all in common batches; one by one if that fails, to find the one that fails."""
        if not prepared:
            return {}
        try:
            scores = self.score_pairs(list(prepared.values()))
        except RuntimeError as error:  # out of memory, as a rule
            if len(prepared) == 1:
                number = next(iter(prepared))
                return {number: failure(number, f"it cannot be scored: {str(error).splitlines()[0]}")}
            alone = [self.score({number: item}) for number, item in prepared.items()]
            return {number: result for single in alone for number, result in single.items()}
        return {number: self.result(item, part) for (number, item), part in zip(prepared.items(), scores, strict=True)}

    @torch.inference_mode()
    def score_pairs(self, items: list[Item]) -> list[torch.Tensor]:
        """Scores `[windows, captions]` of each item. A window is encoded once."""
        extractor, device = self.processor.feature_extractor, self.model.device
        waveforms = [waveform for item in items for waveform in item.windows]
        audio = []
        for start in range(0, len(waveforms), BATCH_SIZE):
            batch = waveforms[start : start + BATCH_SIZE]
            features = extractor(batch, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_features"]
            audio += self.model.get_audio_features(features.to(device)).pooler_output
        pairs, first = [], 0
        for item in items:
            pairs += [(first + window, caption) for window in range(len(item.windows)) for caption in item.captions]
            first += len(item.windows)
        scores = []
        for start in range(0, len(pairs), BATCH_SIZE):
            batch = pairs[start : start + BATCH_SIZE]
            input_ids = self.processor(text=[caption for _, caption in batch])["input_ids"].to(device)
            embeds = torch.stack([audio[window] for window, _ in batch])
            scores.append(self.model(input_ids, audio_embeds=embeds).scores.cpu())
        sizes = [(len(item.windows), len(item.captions)) for item in items]
        parts = torch.cat(scores).split([windows * captions for windows, captions in sizes])
        return [part.view(size) for part, size in zip(parts, sizes, strict=True)]

    def result(self, item: Item, scores: torch.Tensor) -> dict:
        """Scores `[windows, captions]` of an item -> its answer."""
        extractor, samples = self.processor.feature_extractor, [len(window) for window in item.windows]

        def as_json(values) -> dict:
            return {"scores": values.tolist()} if item.several else {"score": values[0].item()}

        answer = as_json(average_windows(extractor, scores, samples))
        if len(samples) > 1:
            ends = (np.cumsum(samples) / extractor.sampling_rate).tolist()
            spans = zip([0.0, *ends[:-1]], ends, scores, strict=True)
            answer["windows"] = [{"start": start, "end": end, **as_json(row)} for start, end, row in spans]
        return answer


def average_windows(extractor, scores: torch.Tensor, samples: list[int]) -> np.ndarray:
    """`scores` `[windows, captions]` -> `[captions]`: the model's own average over windows of so many samples."""
    if hasattr(extractor, "average_windows"):
        return extractor.average_windows(scores, samples)
    return np.average(scores.numpy(), axis=0, weights=samples)  # models published before they had the method


def sound_of(audio):
    """A request's audio -> what the feature extractor reads: never a file of the endpoint's own."""
    if isinstance(audio, (bytes, bytearray)):
        return bytes(audio)
    if not isinstance(audio, str):
        raise ValueError(f"'audio' must be base64, a data: or http(s) URL, or bytes, got {type(audio).__name__}")
    if re.match("https?://|data:", audio, re.IGNORECASE):
        return audio
    try:
        return base64.b64decode("".join(audio.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"'audio' is neither base64 nor a URL: '{audio[:40]}'") from error


def failure(item: int | None, message: str) -> dict:
    """An error as JSON. `item` is its number in the list, from 0, `None` if the whole request is wrong."""
    return {"error": {"item": item, "message": message}}
