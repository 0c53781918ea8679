"""Tables to train on: ratings, captions, pseudo-labels, single listeners; splits and overlap."""

import csv
import json

import numpy as np
import pytest
import soundfile as sf

from xacle.audio_xacle import load_waveform
from xacle.core.clips import hash_clips
from xacle.core.tables import TableError
from xacle.demo.tiny_models import make_sound
from xacle.train.data import read_table
from xacle.train.listeners import ListenerRating, pair_ratings
from xacle.train.splits import check_overlap, k_fold, split_table


@pytest.fixture
def wav(tmp_path):
    """Four short clips a.wav ... d.wav, all different."""
    folder = tmp_path / "wav"
    folder.mkdir()
    for index, name in enumerate("abcd"):
        sf.write(folder / f"{name}.wav", (index + 1) / 5 * make_sound("rain", 0.5), 16000)
    return folder


def write_csv(path, header, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def test_ratings_in_every_format_and_under_every_column_name_give_the_same_table(tmp_path, wav):
    from datasets import Dataset

    rows = [("a.wav", "Rain", 3.25), ("b.wav", "Rain, hard", 10), ("a.wav", "A dog", 0)]
    records = [{"wav_file_name": name, "text": text, "average_score": score} for name, text, score in rows]
    jsonl = tmp_path / "ratings.jsonl"
    jsonl.write_text("\n".join(map(json.dumps, records)))
    saved = tmp_path / "saved"
    Dataset.from_list(records).save_to_disk(str(saved))
    sources = [
        write_csv(tmp_path / "ratings.csv", "wav_file_name,text,average_score", *rows),
        write_csv(tmp_path / "readme.csv", "wave_file_name,text,average_semantic_alignement_score", *rows),
        jsonl,
        saved,
        Dataset.from_list(records),
    ]
    for source in sources:
        table = read_table(source, wav)
        assert (table.clips, table.captions) == (["a.wav", "b.wav"], ["Rain", "Rain, hard", "A dog"])
        assert table.clip_index.tolist() == [0, 1, 0] and table.caption_index.tolist() == [0, 1, 2]
        assert table.labels.tolist() == [3.25, 10, 0]
        assert table.audio == [wav / "a.wav", wav / "b.wav"]


def test_sounds_may_stand_in_a_datasets_column(wav):
    from datasets import Dataset

    content = [(wav / f"{name}.wav").read_bytes() for name in "ab"]
    rows = [
        {"wav_file_name": f"{index}", "text": "Rain", "average_score": 5.0, "audio": {"bytes": content[index]}}
        for index in (0, 1)
    ]
    table = read_table(Dataset.from_list(rows))
    assert [sound.read() for sound in table.audio] == content
    assert hash_clips(table.used_audio) == hash_clips({0: wav / "a.wav", 1: wav / "b.wav"})
    assert (load_waveform(table.audio[1]) == load_waveform(wav / "b.wav")).all()
    unnamed = read_table(Dataset.from_list(rows).remove_columns("wav_file_name"))
    assert unnamed.clips == ["the dataset/1", "the dataset/2"] and (unnamed.clip_index == table.clip_index).all()
    rows[0]["audio"]["path"] = rows[1]["audio"]["path"] = "same.wav"  # in folders of their own
    alike = read_table(Dataset.from_list(rows).remove_columns("wav_file_name"))
    assert alike.clips == ["same.wav"] * 2 and [sound.read() for sound in alike.audio] == content


def test_rows_of_jsonl_may_lack_what_others_have(tmp_path, wav):
    table = tmp_path / "r.jsonl"
    rows = [{"wav_file_name": "a.wav", "text": "Rain"}, {"wav_file_name": "b.wav", "text": "Rain", "average_score": 3}]
    table.write_text("\n".join(map(json.dumps, rows)))
    kept = read_table(table, wav, on_error="skip")
    assert kept.labels.tolist() == [3] and [problem.line for problem in kept.problems] == [1]


def test_pseudo_labels_are_put_on_the_scale_of_ratings_and_captions_have_no_labels(tmp_path, wav):
    table = write_csv(
        tmp_path / "p.csv", "wav_file_name,text,clap_score,is_negative", ("a.wav", "Rain", -1, 1), ("b.wav", "X", 0.5, 0)
    )
    for label in ("pseudo_label", "any"):
        assert read_table(table, wav, label).labels.tolist() == [0.0, 7.5]
    assert read_table(table, wav, "caption").labels is None


def test_everything_wrong_with_a_table_is_reported_at_once(tmp_path, wav):
    (wav / "broken.wav").write_bytes(b"no sound")
    table = write_csv(
        tmp_path / "ratings.csv",
        "wav_file_name,text,average_score",
        ("a.wav", "Rain", 5),
        ("missing.wav", "Rain", 5),
        ("broken.wav", "Rain", 5),
        ("a.wav", "", 5),
        ("a.wav", "Wind", "five"),
        ("a.wav", "Hail", 73),
        ("a.wav", "Rain", 6),
        ("a.wav", "Snow", 6, "too", "many"),
    )
    with pytest.raises(TableError) as error:
        read_table(table, wav)
    assert [problem.line for problem in error.value.problems] == [3, 4, 5, 6, 7, 8, 9]
    for part in (
        "line 3: no audio file",
        "line 4: cannot decode",
        "line 5: no caption",
        "got 'five'",
        "got '73'; rescale",
        "line 2 already",
        "quotes",
    ):
        assert part in str(error.value)
    with pytest.raises(TableError, match="1 labels are off their scale, which leaving rows out does not fix"):
        read_table(table, wav, on_error="skip")
    table.write_text(table.read_text().replace("73", "none"))
    kept = read_table(table, wav, on_error="skip")
    assert len(kept) == 1 and len(kept.problems) == 7


def test_other_scales_and_separators_and_folders_are_reported(tmp_path, wav, transformers_log, caplog):
    header = "wav_file_name,text,average_score"
    read_table(write_csv(tmp_path / "five.csv", header, ("a.wav", "Rain", 1), ("b.wav", "Rain", 5)), wav)
    assert "run from 1 to 5; if their scale is not 0 to 10" in caplog.text
    (tmp_path / "tabs.csv").write_text("wav_file_name\ttext\taverage_score\na.wav\tRain\t5\n")
    with pytest.raises(ValueError, match="seems to be separated by tabs"):
        read_table(tmp_path / "tabs.csv", wav)
    with pytest.raises(TableError, match=r"no file was found at all: is the audio folder right\? It is '.*nowhere'"):
        read_table(tmp_path / "five.csv", tmp_path / "nowhere")


@pytest.mark.parametrize("header", ["text,average_score", "wav_file_name,average_score", "wav_file_name,text,stars"])
def test_a_missing_column_is_named(tmp_path, wav, header):
    table = write_csv(tmp_path / "ratings.csv", header, ["x"] * (header.count(",") + 1))
    with pytest.raises(ValueError, match=r"ratings\.csv' needs the column"):
        read_table(table, wav)


def test_an_empty_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no rows"):
        read_table(write_csv(tmp_path / "ratings.csv", "wav_file_name,text,average_score"))


def test_listeners_ratings_are_averaged_a_pair(tmp_path, wav):
    rows = [("a.wav", "Rain", 2, "x"), ("a.wav", "Rain", 5, "y"), ("b.wav", "Rain", 10, "x"), ("a.wav", "Dog", 1, "x")]
    table = read_table(write_csv(tmp_path / "l.csv", "wav_file_name,text,score,listener_id", *rows), wav)
    assert table.labels.tolist() == [3.5, 10, 1]
    assert (table.clip_index.tolist(), table.caption_index.tolist()) == ([0, 1, 0], [0, 0, 1])


def test_screening_drops_ratings_nobody_comes_close_to_and_reports_lost_pairs(tmp_path, wav):
    rows = [
        ("a.wav", "Rain", 1, "x"),
        ("a.wav", "Rain", 6, "y"),
        ("a.wav", "Rain", 10, "z"),
        ("b.wav", "Rain", 1, "x"),
        ("b.wav", "Rain", 9, "y"),
    ]
    file = write_csv(tmp_path / "l.csv", "wav_file_name,text,score,listener_id", *rows)
    with pytest.raises(TableError, match=r"line 5: no two listeners of this pair agree within 5 points"):
        read_table(file, wav, listener_screening=5)
    table = read_table(file, wav, listener_screening=5, on_error="skip")
    assert table.labels.tolist() == [pytest.approx(17 / 3)] and table.clip_index.tolist() == [0]
    assert read_table(file, wav, listener_screening=4, on_error="skip").labels.tolist() == [8]


def test_the_same_listener_does_not_confirm_himself():
    ratings = [ListenerRating("p", "x", 3), ListenerRating("p", "x", 3), ListenerRating("p", "y", 10)]
    assert pair_ratings(ratings, screening=5) == {"p": None}


def test_standardization_takes_out_each_listeners_mean_and_spread():
    rng = np.random.default_rng(0)
    truth = rng.uniform(2, 8, size=200)
    bias, spread = {"kind": 2.0, "strict": -2.0, "flat": 0.0}, {"kind": 1.0, "strict": 0.5, "flat": 0.0}
    ratings = [
        ListenerRating(pair, who, 5 + bias[who] + spread[who] * (truth[pair] - 5))
        for pair in range(200)
        for who in rng.choice(list(bias), size=2, replace=False)
    ]
    plain = np.array(list(pair_ratings(ratings).values()))
    standardized = np.array(list(pair_ratings(ratings, standardization=True).values()))
    # By hand, for one pair.
    own = [rating for rating in ratings if rating.pair == 7]
    scores = {who: np.array([rating.score for rating in ratings if rating.listener == who]) for who in bias}
    stds = {who: given.std(ddof=1) or 1.0 for who, given in scores.items()}
    expected = np.mean([(rating.score - scores[rating.listener].mean()) / stds[rating.listener] for rating in own])
    center = np.mean([given.mean() for given in scores.values()])
    expected = center + np.sqrt(np.mean(np.square(list(stds.values())))) * expected
    assert standardized[list(pair_ratings(ratings)).index(7)] == pytest.approx(expected)
    assert np.corrcoef(standardized, truth)[0, 1] > np.corrcoef(plain, truth)[0, 1] + 0.1


def test_listener_options_need_listeners(tmp_path, wav):
    table = write_csv(tmp_path / "r.csv", "wav_file_name,text,average_score", ("a.wav", "Rain", 5))
    with pytest.raises(ValueError, match="no single listeners' ratings"):
        read_table(table, wav, listener_standardization=True)


def test_k_fold_keeps_groups_together_and_folds_equal():
    groups = [f"system{index % 17}" for index in range(500)]
    folds = k_fold(groups, 5, seed=3)
    assert len({(group, fold) for group, fold in zip(groups, folds, strict=True)}) == 17
    sizes = np.bincount(folds, minlength=5)
    assert sizes.sum() == 500 and sizes.max() - sizes.min() <= 30
    assert (folds == k_fold(groups, 5, seed=3)).all() and (folds != k_fold(groups, 5, seed=4)).any()
    with pytest.raises(ValueError, match="17 groups cannot be split into 18"):
        k_fold(groups, 18)


def test_splits_lose_and_change_nothing(tmp_path):
    rows = [(f"{index}.wav", f'text, "{index % 3}"', str(index % 10), f"sys/{index % 4}") for index in range(20)]
    table = write_csv(tmp_path / "r.csv", "wav_file_name,text,average_score,model_id", *rows)
    files = split_table(table, tmp_path / "folds", folds=4)
    for train, validation in files:
        parts = [list(csv.reader(file.open(newline="")))[1:] for file in (train, validation)]
        assert sorted(map(tuple, parts[0] + parts[1])) == sorted(rows)
        assert len(parts[1]) == 5
    systems = split_table(table, tmp_path / "systems", by="model_id", leave_one_out=True)
    assert [validation.name for _, validation in systems] == [f"sys_{index}_validation.csv" for index in range(4)]
    assert {row["model_id"] for row in csv.DictReader(systems[2][1].open(newline=""))} == {"sys/2"}
    with pytest.raises(FileExistsError, match=r"fold0_train\.csv"):
        split_table(table, tmp_path / "folds", folds=4)
    clashing = write_csv(tmp_path / "c.csv", "wav_file_name,model_id", ("a", "a b"), ("b", "A_b"), ("c", "other"))
    with pytest.raises(ValueError, match="folds of 'A_b', 'a b' would have the same file names"):
        split_table(clashing, tmp_path / "clash", by="model_id", leave_one_out=True)
    with pytest.raises(ValueError, match="needs --by"):
        split_table(table, tmp_path / "clash", leave_one_out=True)
    with pytest.raises(ValueError, match="needs the column stars"):
        split_table(table, tmp_path / "other", by="stars")


def test_overlap_is_found_by_content_not_by_name(tmp_path, wav, transformers_log):
    (wav / "copy_of_a.wav").write_bytes((wav / "a.wav").read_bytes())
    header = "wav_file_name,text,average_score"
    train = read_table(write_csv(tmp_path / "t.csv", header, ("a.wav", "Rain", 5), ("b.wav", "Dog", 5)), wav)
    clean = read_table(write_csv(tmp_path / "v.csv", header, ("c.wav", "Cat", 5), ("d.wav", "Owl", 5)), wav)
    check_overlap(train, clean)
    leaking = read_table(write_csv(tmp_path / "w.csv", header, ("copy_of_a.wav", "Cat", 5), ("d.wav", "Dog", 5)), wav)
    with pytest.raises(ValueError, match=r"1 of 2 validation clips are also trained on: a\.wav = copy_of_a\.wav"):
        check_overlap(train, leaking)
    check_overlap(train, leaking, allow=True)
