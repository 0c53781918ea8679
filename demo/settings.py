"""What a run of the demo is made of: how much of everything, from which seed, on which corpus."""

from dataclasses import dataclass
from pathlib import Path

from xacle.demo.corpus import Corpus


@dataclass(frozen=True)
class Plan:
    """
    How much of everything.

    Training is measured in pairs, not in epochs: a smaller corpus is repeated more often. Each takes at least one epoch.
    """

    train: int  # rated pairs, clips and events to generate
    validation: int
    test: int
    captions: int
    event_clips: int  # of each kind, for the encoder
    encoder_steps: int
    clap_pairs: int  # pairs to train on
    teacher_pairs: int
    captioning_pairs: int
    pseudo_label_pairs: int
    rating_pairs: int
    control_pairs: int


FULL = Plan(
    train=2400,
    validation=480,
    test=1008,
    captions=2500,
    event_clips=40,
    encoder_steps=1500,
    clap_pairs=4 * 2500,
    teacher_pairs=3 * 2400,
    captioning_pairs=2 * 2500,
    pseudo_label_pairs=3 * 9750,  # 2.9 mismatched pairs for each of 2,500
    rating_pairs=8 * 2400,
    control_pairs=4 * 2400,
)
QUICK = Plan(
    train=48,
    validation=32,
    test=32,
    captions=64,
    event_clips=3,
    encoder_steps=40,
    clap_pairs=0,
    teacher_pairs=0,
    captioning_pairs=0,
    pseudo_label_pairs=0,
    rating_pairs=0,
    control_pairs=0,
)


@dataclass(frozen=True)
class Settings:
    """
    What a run is made of.

    Args:
        quick: A run of a minute, to see that everything works; its numbers mean nothing.
        seed: Of the corpus, the weights and the order of the data.
        corpus: A corpus folder (see corpus.py) to use instead of generated soundscapes.
        audio_encoder: A folder with a BEATs to use instead of a small one trained here.
    """

    quick: bool = False
    seed: int = 0
    corpus: Path | None = None
    audio_encoder: Path | None = None

    def check(self) -> None:
        """Raise `FileNotFoundError` or `ValueError` if a folder cannot be used."""
        if self.audio_encoder is not None and not (self.audio_encoder / "config.json").is_file():
            raise FileNotFoundError(
                f"no model folder at '{self.audio_encoder}'; `xacle convert beats` makes one of a released checkpoint"
            )
        if self.corpus is None:
            return
        if not self.corpus.is_dir():
            raise FileNotFoundError(f"no corpus folder at '{self.corpus}'")
        Corpus(self.corpus).check()
        if self.audio_encoder is None and not (self.corpus / "events.csv").is_file():
            raise FileNotFoundError(
                f"'{self.corpus}' has no events.csv (wav_file_name,labels) to train an audio encoder on; add one, or pass a "
                "trained encoder with --audio-encoder"
            )

    @property
    def plan(self) -> Plan:
        return QUICK if self.quick else FULL

    def to_json(self) -> dict:
        folders = {"corpus": self.corpus, "audio_encoder": self.audio_encoder}
        given = {name: str(folder.resolve()) for name, folder in folders.items() if folder is not None}
        return {"quick": self.quick, "seed": self.seed, **given}
