"""`pipeline(model=..., trust_remote_code=True)`: `{"audio": ..., "text": ...}` -> `{"score": 0-10}`."""

from itertools import accumulate

import torch
from transformers.pipelines.base import ChunkPipeline


class XaclePipeline(ChunkPipeline):
    """
    Scores how well sounds match captions, on the scale people rate on (0-10).

    Takes `{"audio": ..., "text": ...}` or a list of them; the audio is a path, URL, bytes, array (with `"sampling_rate"`
    beside it) or a dict of `datasets`. Returns `{"score": float}` for each, in order. A clip longer than 10 s is scored in
    windows of 10 s, whose scores are averaged by duration and also returned, as
    `"windows": [{"start": s, "end": s, "score": float}, ...]`; with `window="first"` only the first 10 s count, as in the
    authors' code.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __call__(self, inputs, *args, **kwargs):
        return [] if isinstance(inputs, (list, tuple)) and not inputs else super().__call__(inputs, *args, **kwargs)

    def _sanitize_parameters(self, window: str = "mean"):
        if window not in ("mean", "first"):
            raise ValueError(f"window must be 'mean' or 'first', got {window!r}")
        return {"window": window}, {}, {}

    def preprocess(self, inputs, window="mean"):
        if not isinstance(inputs, dict) or not {"audio", "text"} <= inputs.keys():
            got = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
            raise ValueError(f"each input must be a dict with 'audio' and 'text', got {got}")
        if not isinstance(inputs["text"], str) or not inputs["text"].strip():
            raise ValueError(f"'text' must be a caption, got {inputs['text']!r}")
        extractor = self.processor.feature_extractor
        waveform = extractor.fetch_audio(inputs["audio"], inputs.get("sampling_rate"))
        windows = extractor.windows(waveform)[: 1 if window == "first" else None]
        for index, samples in enumerate(windows):
            model_inputs = self.processor(text=inputs["text"], audio=samples, sampling_rate=extractor.sampling_rate)
            yield {"is_last": index == len(windows) - 1, "samples": torch.tensor([len(samples)]), **model_inputs}

    def _forward(self, model_inputs):
        is_last, samples = model_inputs.pop("is_last"), model_inputs.pop("samples")
        return {"is_last": is_last, "samples": samples, "scores": self.model(**model_inputs).scores}

    def postprocess(self, outputs):
        extractor = self.processor.feature_extractor
        scores = [output["scores"].item() for output in outputs]
        samples = [output["samples"].item() for output in outputs]
        result = {"score": float(extractor.average_windows(scores, samples))}
        if len(outputs) > 1:
            ends = [end / extractor.sampling_rate for end in accumulate(samples)]
            spans = zip([0.0, *ends[:-1]], ends, scores, strict=True)
            result["windows"] = [{"start": start, "end": end, "score": score} for start, end, score in spans]
        return result
