"""Do the stages learn on real sounds? The recipe in small on ESC-10 (400 clips of 10 classes), with simulated ratings.

`python benchmarks/esc10.py --data ESC10_FOLDER --out FOLDER --seeds 0 1 2`

Folds 1-4 train, fold 5 tests; 40 clips of fold 4 choose checkpoints and calibrate. A small BEATs learns to classify and is then
frozen; a small M2D-CLAP learns from captions and is tuned on ratings; a tiny language model goes through the stages. All of it
with the code of the full recipe. ESC10_FOLDER holds `meta.csv` (file, fold, label, caption) and the files it names.

The ratings are simulated: a clip's own caption is worth 8.5, that of a class of the same family 4, any other 1.5; four
listeners add normal noise of 1.5 points each and answer in whole points from 0 to 10.
"""

import argparse
import csv
import gc
import json
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import BertConfig, BertTokenizer, Qwen2Config
from transformers.utils import logging

from xacle.audio_xacle import SAMPLING_RATE
from xacle.clap.encoder import ClapEncoder
from xacle.clap.m2d_configuration import M2dClapAudioConfig, M2dClapConfig
from xacle.clap.m2d_modeling import M2dClapModel
from xacle.clap.m2d_processing import M2dClapFeatureExtractor, M2dClapProcessor
from xacle.configuration_xacle import BeatsConfig
from xacle.demo.tiny_models import tiny_config, tiny_tokenizer
from xacle.modeling_beats import BeatsForAudioClassification
from xacle.modeling_xacle import XacleForAlignmentScoring, spec_augment
from xacle.processing_xacle import XacleFeatureExtractor, XacleProcessor
from xacle.scoring.captions import generate_captions, load_captioner
from xacle.scoring.metrics import alignment_metrics
from xacle.scoring.scorer import Scorer
from xacle.train import stage1_captioning, stage2_pseudo_labels, stage3_ratings
from xacle.train.teacher import human_clap
from xacle.train.teacher.pseudo_labels import pseudo_label

FAMILIES = {
    "dog": "animal",
    "rooster": "animal",
    "crying_baby": "human",
    "sneezing": "human",
    "chainsaw": "machine",
    "helicopter": "machine",
    "rain": "water",
    "sea_waves": "water",
    "clock_tick": "home",
    "crackling_fire": "home",
}
MATCHED, RELATED, UNRELATED = 8.5, 4.0, 1.5
LISTENERS, LISTENER_NOISE = 4, 1.5
CLIP_SECONDS = 5


# --- Data ----------------------------------------------------------------------------------------------------------------


def read_meta(data: Path) -> list[dict]:
    with (data / "meta.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if unknown := {row["label"] for row in rows} - FAMILIES.keys():
        raise SystemExit(f"{data}/meta.csv has labels that are not ESC-10's: {sorted(unknown)}")
    return rows


def rated_pairs(clips: list[dict], captions: dict[str, str], rng: np.random.Generator) -> list[tuple]:
    """Each clip with its own caption, one of its family and one of another: `(file, caption, mean rating)`."""
    rows = []
    for clip in clips:
        family = FAMILIES[clip["label"]]
        related = [label for label in captions if FAMILIES[label] == family and label != clip["label"]]
        unrelated = [label for label in captions if FAMILIES[label] != family]
        worth = {clip["label"]: MATCHED, rng.choice(related): RELATED, rng.choice(unrelated): UNRELATED}
        for label, value in worth.items():
            answers = np.clip(np.round(rng.normal(value, LISTENER_NOISE, LISTENERS)), 0, 10)
            rows.append((clip["file"], captions[label], answers.mean()))
    return rows


def write_table(path: Path, header: list[str], rows: list[tuple]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_tables(data: Path, out: Path, seed: int, rated_clips: int) -> dict[str, Path]:
    """The recipe's tables. Few clips are rated, as few are in the full recipe (7.5K pairs of 1,064K)."""
    rng = np.random.default_rng(seed)
    meta = read_meta(data)
    captions = {row["label"]: row["caption"] for row in meta}
    fold4 = rng.permutation([index for index, row in enumerate(meta) if row["fold"] == "4"])
    validation = [meta[index] for index in fold4[:40]]
    train = [row for index, row in enumerate(meta) if row["fold"] != "5" and index not in set(fold4[:40].tolist())]
    test = [row for row in meta if row["fold"] == "5"]
    chosen = [train[index] for index in rng.permutation(len(train))[:rated_clips]]
    rated = ["wav_file_name", "text", "average_score"]
    captioned = ["wav_file_name", "text"]
    return {
        "train_captions": write_table(out / "train_captions.csv", captioned, [(row["file"], row["caption"]) for row in train]),
        "all_matched": write_table(out / "all_matched.csv", rated, [(row["file"], row["caption"], 10) for row in train]),
        "train_ratings": write_table(out / "train_ratings.csv", rated, rated_pairs(chosen, captions, rng)),
        "validation": write_table(out / "validation.csv", rated, rated_pairs(validation, captions, rng)),
        "test": write_table(out / "test.csv", rated, rated_pairs(test, captions, rng)),
    }


# --- The parts the recipe starts from ------------------------------------------------------------------------------------


def train_encoder(data: Path, epochs: int, seed: int) -> tuple[BeatsForAudioClassification, float]:
    """A small BEATs that classifies ESC-10, from folds 1-4, and its accuracy on fold 5."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    meta = read_meta(data)
    labels = torch.tensor([list(FAMILIES).index(row["label"]) for row in meta])
    waveforms = [sf.read(data / row["file"], dtype="float32")[0][: CLIP_SECONDS * SAMPLING_RATE] for row in meta]
    fbank = XacleFeatureExtractor()(waveforms, sampling_rate=SAMPLING_RATE, padding="longest", return_tensors="pt")
    fbank = fbank["input_features"]  # [400, 498, 128]
    silence = float(fbank.min())
    train = [index for index, row in enumerate(meta) if row["fold"] != "5"]
    test = [index for index, row in enumerate(meta) if row["fold"] == "5"]

    config = BeatsConfig(
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        patch_embed_dim=64,
        layerdrop=0.0,
        hidden_dropout=0.1,
        num_labels=len(FAMILIES),
    )
    model = BeatsForAudioClassification(config)
    batch_size, steps = 32, epochs * (len(train) // 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    for step in tqdm(range(steps), desc="BEATs", unit="step"):
        if step % (len(train) // batch_size) == 0:
            order = rng.permutation(train)
        batch = order[step % (len(train) // batch_size) * batch_size :][:batch_size]
        clips = torch.stack([torch.roll(fbank[index], int(rng.integers(498)), 0) for index in batch])
        clips += torch.from_numpy(rng.normal(0, 0.15, (batch_size, 1, 1)).astype(np.float32))  # loudness
        mix, partner = rng.beta(0.3, 0.3), rng.permutation(batch_size)
        clips = spec_augment(mix * clips + (1 - mix) * clips[partner], 24, 60)
        if step % 2:  # as in the scorer, where clips end in the silence they are padded with
            clips[:, int(rng.integers(200, 498)) :] = silence
        logits, target = model(input_features=clips).logits, labels[batch]
        loss = mix * F.cross_entropy(logits, target) + (1 - mix) * F.cross_entropy(logits, target[partner])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        found = torch.cat([model(input_features=fbank[chunk]).logits for chunk in torch.tensor(test).split(40)]).argmax(1)
    return model, float((found == labels[test]).float().mean())


def save_scorer(encoder: BeatsForAudioClassification, captions: list[str], folder: Path, seed: int) -> Path:
    """An untrained scorer around the trained encoder."""
    torch.manual_seed(seed)
    processor = XacleProcessor(XacleFeatureExtractor(), tiny_tokenizer(captions))
    text_config = Qwen2Config(
        vocab_size=len(processor.tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
        tie_word_embeddings=True,
        pad_token_id=processor.tokenizer.pad_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
        bos_token_id=None,
    )
    config = tiny_config(
        processor, audio_config=encoder.config, text_config=text_config, projector_intermediate_size=192, audio_pooling="time"
    )
    model = XacleForAlignmentScoring(config)
    model.model.audio_tower.load_state_dict(encoder.beats.state_dict())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_teacher(captions: list[str], folder: Path, seed: int) -> Path:
    """An untrained, small M2D-CLAP."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    words = sorted({word for caption in captions for word in caption.lower().split()})
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    processor = M2dClapProcessor(M2dClapFeatureExtractor(), BertTokenizer(str(vocabulary)))
    text = BertConfig(
        vocab_size=len(processor.tokenizer), hidden_size=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=256
    )
    audio = M2dClapAudioConfig(hidden_size=128, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2)
    model = M2dClapModel(M2dClapConfig(audio_config=audio, text_config=text))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# --- The recipe ----------------------------------------------------------------------------------------------------------


def arguments(**options) -> list[str]:
    quiet = {"disable_tqdm": "true", "report_to": "none", "dataloader_num_workers": 0, "logging_steps": 1000}
    return [part for name, value in {**quiet, **options}.items() for part in (f"--{name}", str(value))]


def run_recipe(data: Path, out: Path, seed: int, encoder_epochs: int, effort: float, rated_clips: int) -> dict[str, float]:
    """All stages and ablations with one seed; returns the table's numbers. `effort` scales every number of epochs."""
    out.mkdir(parents=True)
    tables = write_tables(data, out, seed, rated_clips)
    captions = sorted({row["caption"] for row in read_meta(data)})
    encoder, accuracy = train_encoder(data, encoder_epochs, seed)
    results = {"encoder accuracy": accuracy}
    untrained = save_scorer(encoder, captions, out / "untrained", seed)
    test_rows = list(csv.DictReader(tables["test"].open(newline="")))
    ratings = [float(row["average_score"]) for row in test_rows]

    def epochs(number: float) -> int:
        return max(1, round(number * effort))

    def stage(main, name, start, table, **options) -> Path:
        common = {"audio_dir": data, "validation_audio_dir": data, "output_dir": out / name, "seed": seed}
        model = {"model_name_or_path": start, "feature_cache": out / "cache", "feature_cache_dtype": "float32"}
        checkpoints = {"save_total_limit": 1, "warmup_steps": 0.1, "per_device_train_batch_size": 16}
        main(arguments(**{**common, **model, **checkpoints, "train_file": tables[table], **options}))
        gc.collect()
        return out / name

    def test(name: str, folder: Path) -> None:
        audio, texts = [data / row["wav_file_name"] for row in test_rows], [row["text"] for row in test_rows]
        scores = Scorer.from_pretrained(folder).score(audio, texts)
        results[name] = alignment_metrics(scores, ratings)["SRCC"]
        print(f"seed {seed}: {name} {results[name]:.3f}", flush=True)

    # Teacher: captions alone (wSCE with every weight 1 is CLIP's loss), then ratings.
    validated = {"validation_file": tables["validation"], "feature_cache": "none"}
    contrastive = {"mae_weight": 0, "num_train_epochs": epochs(40), "learning_rate": 1e-3, "max_grad_norm": 1.0}
    teacher = stage(
        human_clap.main, "clap", save_teacher(captions, out / "m2d", seed), "all_matched", **contrastive, **validated
    )
    tuned = {"num_train_epochs": epochs(20), "learning_rate": 2e-4, "max_grad_norm": 1.0}
    teacher = stage(human_clap.main, "teacher", teacher, "train_ratings", **tuned, **validated)
    judge = ClapEncoder.from_pretrained(teacher)
    with torch.no_grad():
        cosines = [float(judge.similarity([judge.load(data / row["wav_file_name"])], [row["text"]])) for row in test_rows]
    results["teacher"] = alignment_metrics(cosines, ratings)["SRCC"]
    tables["pseudo_labels"] = out / "pseudo_labels.csv"
    cache = out / "cache"
    pseudo_label(judge, tables["train_captions"], tables["pseudo_labels"], data, seed=seed, feature_cache=cache)

    validated = {"validation_file": tables["validation"]}
    captioning = {
        "num_train_epochs": epochs(40),
        "learning_rate": 1e-3,
        "eval_strategy": "no",
        "load_best_model_at_end": "false",
    }
    ranking = {"num_train_epochs": epochs(30), "learning_rate": 5e-4, "listnet_temperature": 0.2, **validated}
    rating = {"num_train_epochs": epochs(60), "learning_rate": 2e-4, "listnet_temperature": 0.2, **validated}
    test("untrained", untrained)
    stage1 = stage(stage1_captioning.main, "stage1", untrained, "train_captions", **captioning)
    stage12 = stage(stage2_pseudo_labels.main, "stage12", stage1, "pseudo_labels", **ranking)
    stage2 = stage(stage2_pseudo_labels.main, "stage2", untrained, "pseudo_labels", **ranking)
    test("stage 1+2", stage12)
    test("stage 3 only", stage(stage3_ratings.main, "stage3", untrained, "train_ratings", **rating))
    test("stage 2+3", stage(stage3_ratings.main, "stage23", stage2, "train_ratings", **rating))
    test("stage 1+2+3", stage(stage3_ratings.main, "stage123", stage12, "train_ratings", **rating))

    clips = [row for row in read_meta(data) if row["fold"] == "5"]
    written = generate_captions(*load_captioner(stage1), [data / row["file"] for row in clips])
    results["stage 1 names the class"] = float(
        np.mean([text == row["caption"] for text, row in zip(written, clips, strict=True)])
    )
    (out / "results.json").write_text(json.dumps(results, indent=1))
    return results


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--encoder-epochs", type=int, default=40)
    parser.add_argument("--effort", type=float, default=1.0, help="scales every other number of epochs")
    parser.add_argument("--rated-clips", type=int, default=48)
    options = parser.parse_args(argv)
    logging.set_verbosity_error()
    effort = (options.encoder_epochs, options.effort, options.rated_clips)
    results = [run_recipe(options.data, options.out / f"seed{seed}", seed, *effort) for seed in options.seeds]
    print(f"\n| test SRCC | {' | '.join(f'seed {seed}' for seed in options.seeds)} | mean |")
    print("|---|" + "---|" * (len(results) + 1))
    for name in results[0]:
        values = [result[name] for result in results]
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} | {np.mean(values):.3f} |")
    return results


if __name__ == "__main__":
    main()
