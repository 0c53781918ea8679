"""Captions from a captioner (stage 1), and the score they give a pair: how close they are to the text that was given."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import BatchFeature

from xacle.configuration_xacle import XacleConfig
from xacle.core.columns import FILE_COLUMNS, PREDICTION_COLUMNS, TEXT_COLUMNS
from xacle.core.loading import check_model_folder, quiet_loading, usable_device
from xacle.core.tables import TableError, check_output, missing_folder, read_pairs, write_rows
from xacle.modeling_xacle import RATING_CENTER, RATING_HALF_RANGE, XacleForConditionalGeneration
from xacle.processing_xacle import XacleProcessor

SENTENCE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
MAX_NEW_TOKENS = 64


def load_captioner(model: str, device: str | None = None) -> tuple[XacleForConditionalGeneration, XacleProcessor]:
    """A captioner's folder or Hub id -> model and processor.

    Raises:
        FileNotFoundError, ValueError: if there is no such model, it lacks weights, or it was trained to score.
    """
    device = usable_device(device)
    check_model_folder(model)
    trained_as = XacleConfig.from_pretrained(model).architectures or []
    with quiet_loading():
        network, loaded = XacleForConditionalGeneration.from_pretrained(model, dtype="float32", output_loading_info=True)
    missing = sorted(loaded["missing_keys"])
    if missing or XacleForConditionalGeneration.__name__ not in trained_as:
        reason = f"lacks {', '.join(missing[:5])}" if missing else f"is a {', '.join(trained_as)}"
        raise ValueError(f"'{model}' {reason}: its captions would mean nothing; pass a folder of `xacle train captioning`")
    return network.to(device).eval(), XacleProcessor.from_pretrained(model)


@torch.no_grad()
def generate_captions(
    model, processor: XacleProcessor, audio: list, batch_size: int = 16, audio_states: Sequence[torch.Tensor] | None = None
) -> list[str]:
    """Greedy captions of sounds, one each, in their order.

    Args:
        audio: Whatever `load_waveform` takes; the first 10 s are used.
        audio_states: The sounds' encoder outputs (see [`XacleModel.get_audio_states`]), where they are known already.
    """
    training = model.training
    model.eval()
    captions = []
    for start in tqdm(range(0, len(audio), batch_size), desc="captioning", unit="batch", delay=2):
        chosen = range(start, min(start + batch_size, len(audio)))
        if audio_states is None:
            extractor = processor.feature_extractor
            waveforms = [extractor.fetch_audio(audio[index])[: extractor.max_samples] for index in chosen]
            inputs = processor(audio=waveforms, sampling_rate=extractor.sampling_rate)
        else:
            rows = processor(text=[""] * len(chosen), task="captioning")  # the prompt and the end of an empty caption
            inputs = BatchFeature({name: rows[name][:, :-1] for name in ("input_ids", "attention_mask")})
            inputs["audio_states"] = torch.stack([audio_states[index] for index in chosen])
        inputs = inputs.to(model.device)
        tokens = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        written = tokens[:, inputs["input_ids"].shape[1] :]
        captions += [caption.strip() for caption in processor.tokenizer.batch_decode(written, skip_special_tokens=True)]
    model.train(training)
    return captions


def load_sentence_model(name: str, device=None):
    """Any sentence-transformers model, by folder or Hub id. Raises `ValueError` if it cannot be loaded."""
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(name, device=None if device is None else str(device))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"no sentence-transformers model can be loaded from '{name}': {reason}. Without a network, pass the folder of one "
            "(--sentence-model FOLDER)"
        ) from error


def caption_scores(captions: list[str], texts: list[str], sentence_model) -> np.ndarray:
    """The paper's way to score with a captioner: cosine of the sentence embeddings of its caption and of the given text.

    Args:
        captions, texts: `[pairs]`.
        sentence_model: See [`load_sentence_model`].

    Returns:
        `[pairs]`, cosines put on the scale of ratings: `5 + 5 * cosine`.
    """
    distinct = list(dict.fromkeys([*captions, *texts]))
    encoded = sentence_model.encode(distinct, normalize_embeddings=True, show_progress_bar=False)
    embeddings = dict(zip(distinct, encoded, strict=True))
    cosines = [embeddings[caption] @ embeddings[text] for caption, text in zip(captions, texts, strict=True)]
    return RATING_CENTER + RATING_HALF_RANGE * np.array(cosines, dtype=np.float32)


def write_captions(output: Path, names: list[str], texts: list[str], captions: list[str], scores: np.ndarray) -> None:
    """Write `wav_file_name,text,caption,pred_score`, a row a pair; `xacle evaluate` reads it."""
    rows = zip(names, texts, captions, np.asarray(scores, dtype=np.float32), strict=True)
    write_rows(output, [FILE_COLUMNS[0], TEXT_COLUMNS[0], "caption", PREDICTION_COLUMNS[0]], rows)


def caption_table(
    model: str,
    table: Path,
    audio_dir: Path,
    output: Path,
    sentence_model: str = SENTENCE_MODEL,
    batch_size: int = 16,
    device: str | None = None,
) -> int:
    """Caption every clip of a table of pairs, score the captions against the texts, write both; returns how many pairs.

    Raises:
        TableError: if any row cannot be used; nothing is written then.
    """
    check_output(output, [table], (".csv",))
    pairs, problems = read_pairs(table, audio_dir)
    if problems:
        hint = None if pairs else missing_folder(problems, audio_dir)
        raise TableError(table, problems, hint or "nothing was captioned; fix them", use="captioned")
    network, processor = load_captioner(model, device)
    sentences = load_sentence_model(sentence_model, network.device)  # before the work that needs it
    clips = {pair.audio: pair.audio for pair in pairs}
    captions = dict(zip(clips, generate_captions(network, processor, list(clips), batch_size), strict=True))
    written, texts = [captions[pair.audio] for pair in pairs], [pair.text for pair in pairs]
    scores = caption_scores(written, texts, sentences)
    write_captions(output, [pair.wav_file_name for pair in pairs], texts, written, scores)
    return len(pairs)
