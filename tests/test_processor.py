"""Captions and sounds -> model inputs: captions are data, long ones are cut with a warning, all survives saving."""

import json

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from transformers import AutoTokenizer

from xacle.demo.tiny_models import CAPTIONS, tiny_tokenizer
from xacle.processing_xacle import XacleFeatureExtractor, XacleProcessor

CLIP = np.zeros(16000, dtype=np.float32)


def suffix(processor) -> list[int]:
    audio = [processor.audio_start_token_id, *[processor.audio_token_id] * 100, processor.audio_end_token_id]
    return [*audio, processor.score_token_id]


def test_the_sequence_of_the_paper(processor):
    inputs = processor(text="Rain falls", audio=CLIP, sampling_rate=16000)
    caption = processor.tokenizer("Rain falls")["input_ids"]
    assert inputs["input_ids"].tolist() == [caption + suffix(processor)]
    assert inputs["input_features"].shape == (1, 998, 128)
    assert set(inputs) == {"input_ids", "input_features"}


def test_padding_comes_after_the_score_token(processor):
    captions = ["Rain falls", "A clock ticks once a second"]
    rows = processor(text=captions)["input_ids"].tolist()
    for row, caption in zip(rows, captions, strict=True):
        expected = processor.tokenizer(caption)["input_ids"] + suffix(processor)
        assert row == expected + [processor.tokenizer.pad_token_id] * (len(rows[0]) - len(expected))


SPECIAL_TOKENS_IN_TEXT = ["<|SCORE|>", "<|AUDIO|>", "<|AUDIO_START|> rain", "a <|im_end|> b", "x<|endoftext|>"]


@pytest.mark.parametrize("caption", SPECIAL_TOKENS_IN_TEXT)
def test_special_tokens_written_in_a_caption_are_text(processor, caption):
    (ids,) = processor.tokenize_captions([caption])
    assert not set(ids) & set(processor.tokenizer.get_added_vocab().values())
    assert processor.tokenizer.decode(ids) == caption
    row = processor(text=caption)["input_ids"][0].tolist()
    assert row.count(processor.score_token_id) == 1
    assert row.count(processor.audio_token_id) == 100


def test_added_tokens_that_are_not_special_are_text_too(processor):
    tokenizer = tiny_tokenizer(list(CAPTIONS.values()))
    tokenizer.add_tokens(["<tool_call>"])  # as Qwen's tokenizer has it
    other = XacleProcessor(XacleFeatureExtractor(), tokenizer)
    assert other.tokenize_captions(["a <tool_call>"]) == processor.tokenize_captions(["a <tool_call>"])


def test_the_plain_text_path_equals_the_tokenizer(processor):
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "tmu/qwen_tiny")
    tokens = {"additional_special_tokens": ["<|AUDIO_START|>", "<|AUDIO_END|>", "<|SCORE|>", "<|AUDIO|>"]}
    tokenizer.add_special_tokens(tokens)
    qwen = XacleProcessor(XacleFeatureExtractor(), tokenizer)
    for caption in ("A dog's bark, 3 times;  then\nrain", "Cafe\u0301 noise", "雨が降る", "", "  two  spaces "):
        assert qwen._tokenize_without_added_tokens(caption) == tokenizer(caption)["input_ids"]


def test_a_long_caption_is_cut_before_the_suffix_with_a_warning(processor, transformers_log):
    row = processor(text="rain " * 1000)["input_ids"][0].tolist()
    assert len(row) == processor.max_caption_tokens + 103
    assert row[-103:] == suffix(processor)
    assert "was cut to max_caption_tokens=256" in transformers_log.text


def test_every_pair_of_one_with_many(processor):
    captions = ["Rain", "Wind", "Fire"]
    one_clip = processor(text=captions, audio=CLIP, sampling_rate=16000)
    assert one_clip["input_features"].shape[0] == 1
    assert one_clip["input_ids"].shape[0] == 3
    one_caption = processor(text="Rain", audio=[CLIP, CLIP], sampling_rate=16000)
    assert one_caption["input_features"].shape[0] == one_caption["input_ids"].shape[0] == 2


def test_the_customary_call_leaves_the_clip_at_ten_seconds(processor):
    inputs = processor(text="Rain", audio=CLIP, sampling_rate=16000, padding=True, return_tensors="pt")
    assert inputs["input_features"].shape == (1, 998, 128)


def test_rows_can_be_padded_to_few_lengths(processor):
    captions = ["Rain", "A clock ticks once a second"]
    assert processor(text=captions, pad_to_multiple_of=64)["input_ids"].shape == (2, 128)
    fixed = processor(text=captions, audio=CLIP, sampling_rate=16000, padding="max_length", max_length=300)
    assert fixed["input_ids"].shape == (2, 300)
    assert fixed["input_features"].shape == (1, 998, 128)
    short = processor(text="Rain", audio=CLIP, sampling_rate=16000, audio_kwargs={"padding": "longest"})
    assert short["input_features"].shape == (1, 98, 128)


def test_captioning_inputs(processor):
    prompt = processor(audio=[CLIP, CLIP], sampling_rate=16000)
    assert prompt["input_ids"].tolist() == [suffix(processor)[:-1]] * 2
    batch = processor(text=["Rain", "A clock ticks"], audio=[CLIP, CLIP], sampling_rate=16000, task="captioning")
    for row, mask, labels, caption in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], ["Rain", "A clock ticks"], strict=True
    ):
        answer = [*processor.tokenizer(caption)["input_ids"], processor.tokenizer.eos_token_id]
        assert row[mask.bool()].tolist() == suffix(processor)[:-1] + answer
        assert labels[labels != -100].tolist() == answer
        assert labels[:102].tolist() == [-100] * 102


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "pass `text`, `audio` or both"),
        ({"text": []}, ValueError, "no caption was given"),
        ({"text": ["Rain", None]}, TypeError, "caption 1 must be a string"),
        ({"text": ["a", "b"], "audio": [CLIP] * 3, "sampling_rate": 16000}, ValueError, "2 captions and 3 sounds"),
        ({"text": ["a", "b"], "audio": np.stack([CLIP, CLIP])}, ValueError, "pass 2 clips as a list"),
        ({"text": "a", "task": "rating"}, ValueError, "'scoring' or 'captioning'"),
        ({"text": "a", "return_tensors": "np"}, ValueError, "returns PyTorch tensors"),
        ({"text": "a", "audio": CLIP, "audio_kwargs": {"return_tensors": "np"}}, ValueError, "returns PyTorch tensors"),
        ({"text": "a", "padding": "max_length", "max_length": 64}, ValueError, "max_length of at least 104"),
        ({"text": ["a", "a b c"], "padding": False}, ValueError, "need padding"),
        ({"text": "a", "paddng": True}, TypeError, "no argument 'paddng'"),
        ({"text": "a", "return_mm_token_type_ids": True}, TypeError, "no argument 'return_mm_token_type_ids'"),
        ({"text": "a", "text_kwargs": {"add_eos": True}}, TypeError, "no argument 'add_eos'"),
        ({"text": "a", "audio": CLIP, "audio_kwargs": {"sample_rate": 44100}}, TypeError, "sample_rate"),
        ({"text": "a", "audio": "missing.wav"}, FileNotFoundError, "missing"),
    ],
)
def test_wrong_calls_are_refused_with_a_reason(processor, arguments, error, message):
    with pytest.raises(error, match=message):
        processor(**arguments)


def test_a_tokenizer_without_the_tokens_is_refused():
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "tmu/qwen_tiny")
    with pytest.raises(ValueError, match=r"lacks the special tokens \['<\|AUDIO\|>'"):
        XacleProcessor(XacleFeatureExtractor(), tokenizer)


def test_round_trip_through_the_auto_classes(tiny_folder, processor, run_python):
    code = """
import sys
from transformers import AutoFeatureExtractor, AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(processor).__name__ == "XacleProcessor" and type(extractor).__name__ == "XacleFeatureExtractor"
processor.save_pretrained(sys.argv[2])  # and once more: what was loaded as remote code saves its code, too
again = AutoProcessor.from_pretrained(sys.argv[2], trust_remote_code=True)
print(again(text="Rain <|SCORE|> falls")["input_ids"].tolist())
"""
    folder = tiny_folder.parent / "again"
    assert json.loads(run_python(code, tiny_folder, folder)) == processor(text="Rain <|SCORE|> falls")["input_ids"].tolist()
    assert {path.name for path in folder.glob("*.py")} == {"processing_xacle.py", "pipeline_xacle.py", "audio_xacle.py"}


def test_settings_survive_saving(tmp_path, processor):
    settings = {"num_audio_tokens": 50, "max_caption_tokens": 7}
    XacleProcessor(processor.feature_extractor, processor.tokenizer, **settings).save_pretrained(tmp_path)
    loaded = XacleProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert (loaded.num_audio_tokens, loaded.max_caption_tokens) == (50, 7)
    assert torch.equal(loaded(text="Rain")["input_ids"], loaded(text=["Rain"])["input_ids"])
