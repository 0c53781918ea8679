"""How well a sound matches a caption by a CLAP: the cosine of their embeddings, known as CLAPScore.

`ClapEncoder` is one interface over transformers' `ClapModel` (LAION-CLAP and models fine-tuned from it, such as the published
Human-CLAP weights) and [`M2dClapModel`]. transformers' processor crops and mixes long clips at random; here the same sound
always has the same embedding.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from transformers import ClapModel, ClapProcessor, PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from xacle.audio_xacle import MAX_CLIP_SECONDS, load_waveform
from xacle.clap.m2d_modeling import M2dClapModel
from xacle.clap.m2d_processing import MIN_SAMPLES, M2dClapProcessor
from xacle.core.loading import check_folder_or_hub_id, usable_device
from xacle.core.provenance import sources_of

logger = logging.get_logger(__name__)

CLASSES = {"clap": (ClapModel, ClapProcessor), "m2d_clap": (M2dClapModel, M2dClapProcessor)}  # by `config.model_type`
CONSTANT_BUFFERS = ("position_ids", "token_type_ids", "relative_position_index", "num_batches_tracked")  # not always saved


class ClapFrontEnd:
    """
    Sounds and captions -> the inputs of a CLAP, with nothing left to chance.

    Args:
        processor: A `ClapProcessor` or [`M2dClapProcessor`].
        config: The model's configuration.

    Raises:
        ValueError: if the processor belongs to another kind of model.
    """

    def __init__(self, processor: ProcessorMixin, config: PreTrainedConfig):
        self.processor = processor
        self.extractor, self.tokenizer = processor.feature_extractor, processor.tokenizer
        self.sampling_rate: int = self.extractor.sampling_rate
        self.max_samples = int(getattr(self.extractor, "max_length_s", MAX_CLIP_SECONDS) * self.sampling_rate)
        self.min_samples = 1 if config.model_type == "clap" else MIN_SAMPLES
        positions = config.text_config.max_position_embeddings
        if config.model_type == "clap":
            fused, truncation = config.audio_config.enable_fusion, self.extractor.truncation
            if fused != (truncation == "fusion"):
                raise ValueError(
                    f"the processor truncates by {truncation!r}, which belongs to a model {'without' if fused else 'with'} "
                    f"fusion; use that of laion/clap-htsat-{'fused' if fused else 'unfused'}"
                )
            positions -= config.text_config.pad_token_id + 1  # as in RoBERTa, positions start after the padding's
        self.max_tokens = positions

    def load(self, audio) -> np.ndarray:
        """Any sound that [`load_waveform`] takes -> waveform `[samples]` at the model's own `sampling_rate`.

        Raises:
            FileNotFoundError, ValueError, TypeError: if it cannot be decoded or is too short for one frame.
        """
        waveform = load_waveform(audio, target_rate=self.sampling_rate)
        if len(waveform) < self.min_samples:
            name = f"'{audio}'" if isinstance(audio, (str, Path)) else "a clip"
            raise ValueError(f"{name} has {len(waveform)} samples at {self.sampling_rate} Hz; {self.min_samples} are needed")
        return waveform

    def audio_inputs(self, waveforms: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """Waveforms `[samples]` at `sampling_rate` -> `input_features` and the model's other audio inputs, one row per clip.

        Of a clip longer than the model's input (10 s), the first 10 s are used: the extractor would crop at random.
        """
        if any(len(waveform) > self.max_samples for waveform in waveforms):
            seconds = self.max_samples / self.sampling_rate
            logger.warning_once(f"CLAP embeds only the first {seconds:g} s of longer clips")
        waveforms = [waveform[: self.max_samples] for waveform in waveforms]
        inputs = dict(self.extractor(waveforms, sampling_rate=self.sampling_rate, return_tensors="pt"))
        if "is_longer" in inputs:
            # Without a long clip in the batch, the extractor marks a random one as long, which changes its embedding.
            inputs["is_longer"] = torch.zeros_like(inputs["is_longer"])
        return inputs

    def text_inputs(self, captions: list[str]) -> dict[str, torch.Tensor]:
        """Captions -> `input_ids` and `attention_mask` `[captions, tokens]`; special tokens in a caption are plain text."""
        inputs = self.tokenizer(
            captions,
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            split_special_tokens=True,
            return_token_type_ids=False,
            return_attention_mask=True,
            return_tensors="pt",
        )
        if inputs["input_ids"].shape[1] == self.max_tokens:
            logger.warning_once(f"captions are cut at {self.max_tokens} tokens, the most that this CLAP takes")
        return dict(inputs)


class ClapEncoder:
    """
    Embeds sounds and captions; their cosine is the CLAPScore.

    ```python
    clap = ClapEncoder.from_pretrained("laion/clap-htsat-fused")
    clap.similarity([clap.load("dog.wav")], ["A dog barks"])  # tensor([0.5])
    ```

    Args:
        model: A `ClapModel` or [`M2dClapModel`]; it is put into evaluation mode.
        processor: Its processor.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        self.model = model.eval()
        self.processor = processor
        self.front_end = ClapFrontEnd(processor, model.config)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | None = None) -> "ClapEncoder":
        """
        Args:
            path: Folder or Hub id of a `ClapModel` or [`M2dClapModel`], with its processor.
            device: `"cpu"`, `"cuda"`...; the best there is if `None`.

        Raises:
            FileNotFoundError, ValueError: if there is no such folder, it holds another model, lacks weights or a processor
                that fits, or the device cannot be used.
        """
        check_folder_or_hub_id(path, "CLAP")
        model_type = PreTrainedConfig.get_config_dict(path)[0].get("model_type")
        if model_type not in CLASSES:
            raise ValueError(f"'{path}' holds a model of type {model_type!r}; a CLAP is of type 'clap' or 'm2d_clap'")
        model_class, processor_class = CLASSES[model_type]
        device = usable_device(device)
        try:
            model, loaded = model_class.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
        except SafetensorError as error:
            raise ValueError(f"the weights in '{path}' are damaged ({error}); copy or download them again") from error
        if missing := sorted(key for key in loaded["missing_keys"] if not key.endswith(CONSTANT_BUFFERS)):
            raise ValueError(f"'{path}' lacks {', '.join(missing[:5])}{' ...' if missing[5:] else ''}")
        try:
            processor = processor_class.from_pretrained(path)
        except (OSError, ValueError, TypeError) as error:
            source = "laion/clap-htsat-fused or -unfused" if model_type == "clap" else "the converted checkpoint"
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"'{path}' holds no processor that can be loaded ({reason}); save the one of {source} beside the weights"
            ) from error
        model.config.weight_sources = sources_of(model.config.to_dict(), "teacher", path)
        try:
            return cls(model.to(device), processor)
        except ValueError as error:
            raise ValueError(f"'{path}': {error}") from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model and processor, for [`ClapEncoder.from_pretrained`] and the model's own class."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    @property
    def sampling_rate(self) -> int:
        """The rate of the waveforms it takes, in Hz."""
        return self.front_end.sampling_rate

    @property
    def embedding_size(self) -> int:
        config = self.model.config
        return config.projection_dim if config.model_type == "clap" else config.audio_config.hidden_size

    def load(self, audio) -> np.ndarray:
        """See [`ClapFrontEnd.load`]."""
        return self.front_end.load(audio)

    def embed_audio(self, waveforms: list[np.ndarray]) -> torch.Tensor:
        """Waveforms `[samples]` at `sampling_rate` -> `[clips, embedding_size]` of length 1, float32; differentiable."""
        return self.embed_audio_inputs(self.front_end.audio_inputs(waveforms))

    def embed_audio_inputs(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """[`ClapEncoder.embed_audio`] of what [`ClapFrontEnd.audio_inputs`] returned."""
        return self._embed(self.model.get_audio_features, inputs)

    def embed_text(self, captions: list[str]) -> torch.Tensor:
        """Captions -> `[captions, embedding_size]` of length 1, float32; differentiable."""
        return self._embed(self.model.get_text_features, self.front_end.text_inputs(captions))

    def _embed(self, tower, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        return F.normalize(tower(**inputs).pooler_output.float(), dim=-1)

    def similarity(self, waveforms: list[np.ndarray], captions: list[str]) -> torch.Tensor:
        """The cosine of each waveform and its caption `[pairs]`, from -1 to 1."""
        return (self.embed_audio(waveforms) * self.embed_text(captions)).sum(dim=-1).clamp(-1.0, 1.0)

    def fingerprint(self) -> str:
        """A name for everything an embedding depends on: the weights and the settings of model and processor."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        tokenizer = json.loads(self.front_end.tokenizer.backend_tokenizer.to_str())
        irrelevant = ("transformers_version", "weight_sources")
        settings = [
            {name: value for name, value in self.model.config.to_diff_dict().items() if name not in irrelevant},
            self.front_end.extractor.to_dict(),
            # What the latest call set; every call sets it anew.
            {name: value for name, value in tokenizer.items() if name not in ("padding", "truncation")},
        ]
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        return digest.hexdigest()
