"""The demo's recipe: the paper's Table 2 in miniature, on generated soundscapes or on a corpus folder.

The steps are those of the full recipe and call the same code, with small numbers: see `STEPS` and `Recipe`'s methods.
"""

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile as sf
import torch

from xacle.core.provenance import sources_of, weight_source
from xacle.core.tables import stream_rows, write_rows
from xacle.demo.audio_encoder import read_events, share_found, train_encoder
from xacle.demo.corpus import AVERAGE, RATED, Corpus
from xacle.demo.generated_corpus import event_clips, scene_clips, write_corpus
from xacle.demo.schedule import Step
from xacle.demo.settings import Settings
from xacle.demo.systems import BLIND_CAPTION, score_early, score_systems
from xacle.demo.tiny_models import DEMO_LICENSE, save_small_clap, save_small_scorer
from xacle.modeling_beats import BeatsForAudioClassification, BeatsModel
from xacle.modeling_xacle import XacleForAlignmentScoring
from xacle.processing_xacle import XacleProcessor
from xacle.soundscapes.random_numbers import generator
from xacle.soundscapes.render import SAMPLES, SAMPLING_RATE
from xacle.train import stage1_captioning, stage2_pseudo_labels, stage3_ratings
from xacle.train.clip_features import cache_features
from xacle.train.teacher import human_clap
from xacle.train.teacher.pseudo_labels import pseudo_label

CACHE_DTYPE = "float16"
AUDIO_BLIND, CAPTION_BLIND = "_audio_blind", "_caption_blind"  # endings of tables
BATCH_SIZE = 16  # the paper's
ENCODER_TEST_SCENES = 100


class Recipe:
    """The steps of the demo. Each method is one step; it writes into a folder of its own and returns what the report needs."""

    def __init__(self, out: Path, settings: Settings):
        self.out, self.settings, self.plan, self.seed = out, settings, settings.plan, settings.seed
        self.corpus = Corpus(settings.corpus or out / "corpus")
        self.tables, self.cache = out / "tables", out / "cache"

    # ---- What the recipe starts from. ----

    def make_corpus(self, folder: Path) -> dict:
        plan = self.plan
        if self.settings.corpus is None:
            return write_corpus(folder, self.seed, plan.train, plan.validation, plan.test, plan.captions)
        return self.corpus.summary()

    def make_tables(self, folder: Path) -> None:
        """Tables besides the corpus' own: captions as pairs that match, and ratings with the sound or the caption hidden."""
        folder.mkdir()
        sf.write(folder / "silence.wav", np.zeros(SAMPLES, dtype=np.float32), SAMPLING_RATE)
        write_rows(
            folder / "matched.csv", AVERAGE, [(pair.wav_file_name, pair.text, 10) for pair in self.corpus.pairs("captions")]
        )
        for split in RATED:
            of_text, of_sound = {}, {}  # without the sounds, pairs with the same caption are one pair, and the reverse
            for pair in self.corpus.pairs(split):
                of_text.setdefault(pair.text, []).append(pair.rating)
                of_sound.setdefault(pair.wav_file_name, []).append(pair.rating)
            silent = [("silence.wav", text, np.mean(ratings)) for text, ratings in of_text.items()]
            write_rows(folder / f"{split}{AUDIO_BLIND}.csv", AVERAGE, silent)
            captionless = [(name, BLIND_CAPTION, np.mean(ratings)) for name, ratings in of_sound.items()]
            write_rows(folder / f"{split}{CAPTION_BLIND}.csv", AVERAGE, captionless)

    def make_encoder(self, folder: Path) -> dict:
        """A small BEATs that classifies events; nothing if an encoder is given."""
        if self.settings.audio_encoder is not None:
            return {"events_found": None}
        classifier, found = self.train_encoder()
        classifier.save_pretrained(folder)
        return {"events_found": found}

    def make_scorer(self, folder: Path) -> None:
        """An untrained scorer around the audio encoder, with the audio states of all clips in the cache."""
        given = self.settings.audio_encoder
        if given is not None:
            encoder = BeatsModel.from_pretrained(given, dtype=torch.float32)
            sources = sources_of(encoder.config.to_dict(), "audio encoder", given)
        else:
            encoder = BeatsForAudioClassification.from_pretrained(self.out / "encoder").beats
            generated = self.settings.corpus is None
            sounds, license = ("generated sounds", DEMO_LICENSE) if generated else (self.corpus.folder.name, None)
            sources = [weight_source("audio encoder", f"a small BEATs, trained on {sounds}", license)]
        save_small_scorer(encoder, sources, self.captions(), folder, self.seed)
        model, processor = XacleForAlignmentScoring.from_pretrained(folder), XacleProcessor.from_pretrained(folder)
        for split in (*RATED, "captions"):
            sounds = dict(enumerate(map(str, dict.fromkeys(self.corpus.sounds(split)))))
            cache_features("audio_states", sounds, processor, self.cache, model, dtype=CACHE_DTYPE)

    def train_encoder(self) -> tuple[BeatsForAudioClassification, float | None]:
        """The classifier, and the share of events it finds in clips it was not trained on, if there are any."""
        rng = generator(self.seed, 10)
        if self.settings.corpus is None:
            clips = event_clips(self.plan.event_clips, rng)
            new_clips = scene_clips(ENCODER_TEST_SCENES, generator(self.seed, 11))
        else:
            clips, new_clips = read_events(self.corpus)
        classifier = train_encoder(clips, self.plan.encoder_steps, self.seed, rng)
        return classifier, None if new_clips is None else share_found(classifier, new_clips)

    # ---- The teacher. ----

    def train_clap(self, folder: Path) -> None:
        """CLIP's contrastive loss: the weighted cross-entropy with every rating 10, and nothing else."""
        save_small_clap(self.captions(), self.out / "untrained_clap", self.seed)
        self.train(
            human_clap.main,
            folder,
            self.out / "untrained_clap",
            train_file=self.tables / "matched.csv",
            audio_dir=self.corpus.audio_dir("captions"),
            mae_weight=0,
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            num_train_epochs=self.epochs(self.plan.clap_pairs, "captions"),
            max_grad_norm=1.0,
            feature_cache="none",
        )

    def train_teacher(self, folder: Path) -> None:
        """Human-CLAP."""
        self.train(
            human_clap.main,
            folder,
            self.out / "clap",
            **self.ratings("train"),
            learning_rate=2e-4,
            num_train_epochs=self.epochs(self.plan.teacher_pairs, "train"),
            max_grad_norm=1.0,
            feature_cache="none",
        )

    def label(self, folder: Path) -> dict:
        folder.mkdir()
        labels = pseudo_label(
            self.out / "teacher",
            self.corpus.table("captions"),
            folder / "pseudo_labels.csv",
            self.corpus.audio_dir("captions"),
            seed=self.seed,
            feature_cache=self.cache,
        )
        return {"rows": labels.rows}

    # ---- The stages. ----

    def stage1(self, folder: Path) -> None:
        self.train(
            stage1_captioning.main,
            folder,
            self.out / "untrained",
            validation=False,
            train_file=self.corpus.table("captions"),
            audio_dir=self.corpus.audio_dir("captions"),
            learning_rate=1e-3,
            num_train_epochs=self.epochs(self.plan.captioning_pairs, "captions"),
        )

    def stage2(self, folder: Path, start: str = "untrained") -> None:
        rows = self.step_record("pseudo_labels")["result"]["rows"]
        self.train(
            stage2_pseudo_labels.main,
            folder,
            self.folder(start),
            train_file=self.folder("pseudo_labels") / "pseudo_labels.csv",
            audio_dir=self.corpus.audio_dir("captions"),
            learning_rate=7e-4,
            num_train_epochs=max(1, round(self.plan.pseudo_label_pairs / rows)),
        )

    def stage12(self, folder: Path) -> None:
        self.stage2(folder, "stage1")

    def stage3(self, folder: Path, start: str, blind: str = "", learning_rate: float = 3e-4, pairs: int | None = None) -> None:
        pairs = self.plan.rating_pairs if pairs is None else pairs
        self.train(
            stage3_ratings.main,
            folder,
            self.folder(start),
            **self.ratings("train", blind),
            **self.ratings("validation", blind),
            allow_overlap=blind == AUDIO_BLIND,  # all pairs have the same silence
            learning_rate=learning_rate,
            num_train_epochs=self.epochs(pairs, "train"),
            freq_mask_width=0,  # with masks, the encoder would have to run in every step
            time_mask_width=0,
        )

    def stage3_only(self, folder: Path) -> None:
        """Starts from nothing, and so with a higher learning rate."""
        self.stage3(folder, "untrained", learning_rate=5e-4)

    def stage23(self, folder: Path) -> None:
        self.stage3(folder, "stage2")

    def stage123(self, folder: Path) -> None:
        self.stage3(folder, "stage12")

    def audio_blind(self, folder: Path) -> None:
        self.stage3(folder, "stage12", AUDIO_BLIND, pairs=self.plan.control_pairs)

    def caption_blind(self, folder: Path) -> None:
        self.stage3(folder, "stage12", CAPTION_BLIND, pairs=self.plan.control_pairs)

    # ---- Helpers. ----

    def train(self, main: Callable, folder: Path, start: Path, validation: bool = True, **options) -> None:
        """Run a stage script with the arguments that `xacle train` would pass it."""
        options = {
            "model_name_or_path": start,
            "output_dir": folder,
            "seed": self.seed,
            "per_device_train_batch_size": BATCH_SIZE,
            "warmup_steps": 0.1,
            "per_device_eval_batch_size": 64,
            "save_total_limit": 1,
            "save_only_model": "true",  # an interrupted step starts again
            "dataloader_num_workers": 0,
            "feature_cache": self.cache,
            "feature_cache_dtype": CACHE_DTYPE,
            "report_to": "none",
            "disable_tqdm": "false",
            **(self.ratings("validation") if validation else {"eval_strategy": "no", "load_best_model_at_end": "false"}),
        } | options
        rows = sum(1 for _ in stream_rows(options["train_file"]))
        batch_size = min(options["per_device_train_batch_size"], rows)  # the last, smaller batch is dropped
        options["per_device_train_batch_size"] = batch_size
        main([part for name, value in options.items() for part in (f"--{name}", str(value))])
        for checkpoint in folder.glob("checkpoint-*"):  # the best one's weights are in the folder itself
            shutil.rmtree(checkpoint)
        gc.collect()

    def epochs(self, pairs: int, split: str) -> int:
        """How often to repeat a split of the corpus to train on about so many pairs."""
        return max(1, round(pairs / len(self.corpus.pairs(split))))

    def ratings(self, split: str, blind: str = "") -> dict[str, Path]:
        """The arguments for a table of ratings, by `blind` one with the sound or the caption hidden."""
        table, audio_dir = self.corpus.table(split), self.corpus.audio_dir(split)
        if blind:
            table = self.tables / f"{split}{blind}.csv"
            audio_dir = self.tables if blind == AUDIO_BLIND else audio_dir
        prefix = "validation_" if split == "validation" else ""
        return {f"{prefix or 'train_'}file": table, f"{prefix}audio_dir": audio_dir}

    def folder(self, name: str) -> Path:
        """Where a step writes; the final model is easy to find."""
        return self.out / ("model" if name == "stage123" else name)

    def captions(self) -> list[str]:
        return [pair.text for pair in self.corpus.pairs("captions")]

    def step_record(self, name: str) -> dict | None:
        """What a finished step left: its seconds and its result. `None` if it is not finished."""
        file = self.out / "steps" / f"{name}.json"
        return json.loads(file.read_text()) if file.is_file() else None


LAST_STEPS = ("stage123", "stage23", "audio_blind", "caption_blind", "early_scores")

# Seconds: of a full run on generated soundscapes, each step on one core of a Xeon.
STEPS = (
    Step("corpus", "Corpus: sounds, captions and ratings", Recipe.make_corpus, 35),
    Step("encoder", "Audio encoder: a BEATs that classifies events, frozen", Recipe.make_encoder, 75),
    Step("tables", "Write tables with the sound or the caption hidden", Recipe.make_tables, 1, ("corpus",)),
    Step("clap", "CLAP: train a small one on captions", Recipe.train_clap, 60, ("tables",)),
    Step("untrained", "An untrained scorer around the audio encoder", Recipe.make_scorer, 40, ("corpus", "encoder")),
    Step("teacher", "Teacher: tune the CLAP on ratings", Recipe.train_teacher, 30, ("clap",), curve=True),
    Step("stage1", "Stage 1: captioning", Recipe.stage1, 25, ("untrained",), curve=True),
    Step("pseudo_labels", "Label true and mismatched pairs with the teacher", Recipe.label, 15, ("teacher",)),
    Step("stage12", "Stage 2: pseudo-labels, after stage 1", Recipe.stage12, 85, ("stage1", "pseudo_labels"), curve=True),
    Step("stage2", "Stage 2 without stage 1", Recipe.stage2, 85, ("untrained", "pseudo_labels"), curve=True),
    Step("stage3", "Stage 3 only", Recipe.stage3_only, 35, ("untrained", "tables"), curve=True),
    Step("stage123", "Stage 3: ratings, after stages 1 and 2", Recipe.stage123, 35, ("stage12",), curve=True),
    Step("stage23", "Stage 3 after stage 2 alone", Recipe.stage23, 35, ("stage2",), curve=True),
    Step("audio_blind", "Control: stage 3 without sound, after stages 1 and 2", Recipe.audio_blind, 10, ("stage12",)),
    Step("caption_blind", "Control: stage 3 without caption, after stages 1 and 2", Recipe.caption_blind, 10, ("stage12",)),
    Step("early_scores", "Score with the systems that are ready", score_early, 20, ("stage12", "stage3")),
    Step("results", "Score, and compare with the ratings", score_systems, 15, LAST_STEPS),
)
