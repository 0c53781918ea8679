"""Any pretrained decoder becomes a captioner and a scorer: tied or untied head, BOS or none, no padding token, few rows."""

import json

import pytest
import torch
from conftest import GOLDEN
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from xacle.conversion.beats import convert_beats
from xacle.demo.tiny_models import CAPTIONS, make_sound, tiny_tokenizer
from xacle.modeling_xacle import XacleForAlignmentScoring, XacleForConditionalGeneration
from xacle.processing_xacle import XacleProcessor
from xacle.train import stage1_captioning, stage2_pseudo_labels
from xacle.train.build import SPECIAL_TOKENS, assemble

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"intermediate_size": 96}


def plain_tokenizer(bos: bool = False, pad: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer as decoders come with: without the scorer's tokens."""
    backend = tiny_tokenizer(list(CAPTIONS.values())).backend_tokenizer
    content = json.loads(backend.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in SPECIAL_TOKENS]
    backend = type(backend).from_str(json.dumps(content))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>" if pad else None
    )
    if bos:
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        first = [("<s>", tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=first)
    return tokenizer


def save_decoder(folder, config_class, tokenizer, spare_rows: int = 0, **fields):
    """A tiny decoder with random weights and its tokenizer, as on the Hub."""
    torch.manual_seed(0)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = config_class(vocab_size=len(tokenizer) + spare_rows, **ids, **fields)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


DECODERS = {
    "tied, spare rows": (Qwen2Config, {}, {"spare_rows": 12, "tie_word_embeddings": True, **SIZES}),
    "untied, spare rows": (Qwen2Config, {}, {"spare_rows": 12, "tie_word_embeddings": False, **SIZES}),
    "tied, no spare rows": (Qwen2Config, {}, {"tie_word_embeddings": True, **SIZES}),
    "untied, BOS, no padding token": (LlamaConfig, {"bos": True, "pad": False}, {"tie_word_embeddings": False, **SIZES}),
    "tied, BOS": (LlamaConfig, {"bos": True}, {"tie_word_embeddings": True, **SIZES}),
    "other names": (GPT2Config, {"pad": False}, {"n_embd": 64, "n_layer": 2, "n_head": 4}),
}


@pytest.fixture(scope="module")
def beats(tmp_path_factory):
    return convert_beats(GOLDEN / "beats_tiny_a.pt", tmp_path_factory.mktemp("beats") / "beats")


@pytest.fixture(params=DECODERS)
def decoder(request, tmp_path):
    config_class, tokenizer, fields = DECODERS[request.param]
    return save_decoder(tmp_path / "decoder", config_class, plain_tokenizer(**tokenizer), **fields)


@torch.no_grad()
def test_a_captioner_predicts_what_its_decoder_predicts(decoder, beats):
    """Embeddings, layers and the output head, tied or not, are the decoder's."""
    original = AutoModelForCausalLM.from_pretrained(decoder)
    captioner, processor = assemble(XacleForConditionalGeneration, str(beats), str(decoder))
    ids = AutoTokenizer.from_pretrained(decoder)("Rain falls on a roof", return_tensors="pt")["input_ids"]
    rows = original.config.vocab_size
    logits = captioner.eval()(input_ids=ids).logits
    torch.testing.assert_close(logits[..., :rows], original.eval()(ids).logits, rtol=1e-5, atol=1e-5)
    assert logits.shape[-1] >= len(processor.tokenizer)
    tied = captioner.lm_head.weight is captioner.get_input_embeddings().weight
    assert tied == original.config.tie_word_embeddings
    assert torch.equal(captioner.lm_head.weight[:rows], original.get_output_embeddings().weight)


@torch.no_grad()
def test_rows_are_as_the_decoder_knows_them(decoder, beats, tmp_path):
    """A BOS where its tokenizer puts one, also after saving; padding without influence on scores."""
    expects_bos = AutoTokenizer.from_pretrained(decoder).bos_token_id is not None
    scorer, processor = assemble(XacleForAlignmentScoring, str(beats), str(decoder))
    processor.save_pretrained(tmp_path / "saved")
    scorer.save_pretrained(tmp_path / "saved")
    scorer = XacleForAlignmentScoring.from_pretrained(tmp_path / "saved").eval()
    processor = XacleProcessor.from_pretrained(tmp_path / "saved")
    sound, texts = make_sound("rain", 2.0), ["Rain", "Rain falls steadily on a roof", "a <s> of <|SCORE|>"]
    for task in ("scoring", "captioning"):
        rows = processor(text=texts, task=task)["input_ids"]
        if expects_bos:
            assert rows[:, 0].tolist() == [processor.tokenizer.bos_token_id] * 3
            assert (rows == processor.tokenizer.bos_token_id).sum() == 3
        else:
            assert rows[0, 0] == (
                processor.tokenizer("Rain")["input_ids"][0] if task == "scoring" else processor.audio_start_token_id
            )
    batch = processor(text=texts, audio=sound, sampling_rate=16000)
    together = scorer(**batch).scores
    alone = [scorer(**processor(text=text, audio=sound, sampling_rate=16000)).scores for text in texts]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_labels_of_captions_leave_out_the_bos(beats, tmp_path):
    folder = save_decoder(tmp_path / "decoder", LlamaConfig, plain_tokenizer(bos=True), tie_word_embeddings=True, **SIZES)
    _, processor = assemble(XacleForConditionalGeneration, str(beats), str(folder))
    inputs = processor(text=["Rain", "Rain falls"], task="captioning")
    learned = [row[row >= 0].tolist() for row in inputs["labels"]]
    assert [processor.tokenizer.decode(ids) for ids in learned] == ["Rain<|im_end|>", "Rain falls<|im_end|>"]


def test_the_stages_keep_an_untied_head(beats, task, tmp_path):
    """Stage 1 starts from the decoder's head and saves what it made of it; stage 2 goes on without it."""
    folder = save_decoder(
        tmp_path / "decoder", LlamaConfig, plain_tokenizer(bos=True, pad=False), tie_word_embeddings=False, **SIZES
    )
    parts = {"model_name_or_path": None, "audio_encoder": beats, "language_model": folder, "validation_file": None}
    small = {"num_train_epochs": 1, "learning_rate": 1e-5}
    stage1_captioning.main(task.arguments(tmp_path / "stage1", "train_captions", **parts, **small))
    captioner = XacleForConditionalGeneration.from_pretrained(tmp_path / "stage1")
    head = AutoModelForCausalLM.from_pretrained(folder).get_output_embeddings().weight
    learned = captioner.lm_head.weight[: len(head)] - head
    assert 0 < learned.abs().max() < 1e-3
    assert captioner.lm_head.weight is not captioner.get_input_embeddings().weight
    stage2_pseudo_labels.main(
        task.arguments(tmp_path / "stage2", "pseudo_labels", **small, model_name_or_path=tmp_path / "stage1")
    )
    assert XacleProcessor.from_pretrained(tmp_path / "stage2").prepend_bos


def test_decoders_that_cannot_be_used_are_refused_by_name(beats, tmp_path):
    tokenizer = plain_tokenizer()
    tokenizer.eos_token = None
    endless = save_decoder(tmp_path / "endless", Qwen2Config, tokenizer, **SIZES)
    with pytest.raises(ValueError, match=r"endless' has no eos_token"):
        assemble(XacleForConditionalGeneration, str(beats), str(endless))
