"""Hugging Face Inference Endpoints: JSON in, scores out. It travels with the model and needs nothing but the repository.

    {"inputs": {"audio": "<base64, data: or http(s) URL>", "text": "A dog barks"}}    -> {"score": 7.9}
    {"inputs": {"audio": ..., "text": ["A dog barks", "Rain falls"]}}                 -> {"scores": [7.9, 1.2]}
    {"inputs": [{"audio": ..., "text": ...}, ...]}                                    -> one result each, in order

`audio` is a whole file (wav, flac, ogg, mp3). A clip over 10 s is scored in windows of 10 s, averaged by duration; the result
then has `windows` as well. `"parameters": {"window": "first"}` takes the first 10 s only. An audio file as the request's body
(`Content-Type: audio/...`) needs its caption in the parameters: `{"inputs": <bytes>, "parameters": {"text": ...}}`, which an
endpoint makes of the query `?text=A+dog+barks`.

What cannot be scored gives `{"error": {"item": 2, "message": "..."}}` in its place, with its number in the list, counted from
0, and costs no other item. The endpoint fetches the URLs it is given: protect it if its network must not be reached.
"""

import base64
import binascii
import re

import torch
from transformers import AutoModel, AutoProcessor

BATCH_SIZE = 16  # windows encoded, or pairs of a window and a caption scored, at once
WINDOWS = ("mean", "first")


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
        """A result for each item, in order; errors stand in the place of those that cannot be scored."""
        results, prepared = {}, {}
        for number, item in enumerate(items):
            try:
                prepared[number] = self.prepare(item, window)
            except Exception as error:  # whatever is wrong with one item must not cost the others
                results[number] = failure(number, str(error) or type(error).__name__)
        results |= self.score(prepared)
        return [results[number] for number in range(len(items))]

    def prepare(self, item, window: str) -> tuple[list, list[str], bool]:
        """An item -> its windows (waveforms), its captions, and whether a list of captions was given."""
        if not isinstance(item, dict) or not {"audio", "text"} <= item.keys():
            got = sorted(map(str, item)) if isinstance(item, dict) else type(item).__name__
            raise ValueError(f"each input must be an object with 'audio' and 'text', got {got}")
        several = isinstance(item["text"], list)
        captions = item["text"] if several else [item["text"]]
        if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
            raise ValueError("'text' must be a caption or a list of captions")
        extractor = self.processor.feature_extractor
        windows = extractor.windows(extractor.fetch_audio(sound_of(item["audio"])))
        return windows[: 1 if window == "first" else None], captions, several

    def score(self, prepared: dict[int, tuple]) -> dict[int, dict]:
        """Results of prepared items, all in common batches; one by one if that fails, to tell which one it is."""
        if not prepared:
            return {}
        try:
            scores = iter(self.score_pairs([(windows, captions) for windows, captions, _ in prepared.values()]))
        except RuntimeError as error:  # out of memory, as a rule
            if len(prepared) == 1:
                number = next(iter(prepared))
                return {number: failure(number, f"it cannot be scored: {str(error).splitlines()[0]}")}
            alone = [self.score({number: item}) for number, item in prepared.items()]
            return {number: result for single in alone for number, result in single.items()}
        return {number: self.result(next(scores), windows, several) for number, (windows, _, several) in prepared.items()}

    @torch.inference_mode()
    def score_pairs(self, items: list[tuple[list, list[str]]]) -> list[torch.Tensor]:
        """Windows and captions of each item -> scores `[windows, captions]` of each item. A window is encoded once."""
        extractor, device = self.processor.feature_extractor, self.model.device
        waveforms = [waveform for windows, _ in items for waveform in windows]
        audio = []
        for start in range(0, len(waveforms), BATCH_SIZE):
            batch = waveforms[start : start + BATCH_SIZE]
            features = extractor(batch, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_features"]
            audio += self.model.get_audio_features(features.to(device)).pooler_output
        pairs, first = [], 0
        for windows, captions in items:
            pairs += [(first + window, caption) for window in range(len(windows)) for caption in captions]
            first += len(windows)
        scores = []
        for start in range(0, len(pairs), BATCH_SIZE):
            batch = pairs[start : start + BATCH_SIZE]
            input_ids = self.processor(text=[caption for _, caption in batch])["input_ids"].to(device)
            embeds = torch.stack([audio[window] for window, _ in batch])
            scores.append(self.model(input_ids, audio_embeds=embeds).scores.cpu())
        sizes = [(len(windows), len(captions)) for windows, captions in items]
        parts = torch.cat(scores).split([windows * captions for windows, captions in sizes])
        return [part.view(size) for part, size in zip(parts, sizes, strict=True)]

    def result(self, scores: torch.Tensor, windows: list, several: bool) -> dict:
        """Scores `[windows, captions]` of an item -> its answer."""
        seconds = torch.tensor([len(window) for window in windows]) / self.processor.feature_extractor.sampling_rate
        ends = seconds.cumsum(0).tolist()
        means = (scores * seconds[:, None]).sum(0) / seconds.sum()

        def shown(values):
            return {"scores": values.tolist()} if several else {"score": values[0].item()}

        answer = shown(means)
        if len(windows) > 1:
            spans = zip([0.0, *ends[:-1]], ends, scores, strict=True)
            answer["windows"] = [{"start": start, "end": end, **shown(row)} for start, end, row in spans]
        return answer


def sound_of(audio):
    """What a request gives as audio -> what the feature extractor reads. Never a file of the endpoint's own."""
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
