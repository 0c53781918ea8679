"""`xacle select`: the best rows and preference pairs, the same whatever the format, in memory that does not grow."""

import csv
import json

import numpy as np
import pytest
from test_scoring import command, refusal, write_table

from xacle.scoring import selection
from xacle.scoring.selection import SelectionOptions, select

HEADER = ("wav_file_name", "text", "pred_score", "model_id", "note")
ROWS = [
    ("a.wav", "rain", 7.5, "x", "first"),
    ("a.wav", "a dog, barking", 2.0, "y", ""),
    ("b.wav", "rain", 7.5, "y", "as good as the first"),
    ("b.wav", "a dog, barking", 9.0, "x", ""),
    ("c.wav", "rain", 1.0, "x", 'a "quoted" note'),
    ("c.wav", "thunder", 5.0, "z", ""),
    ("d.wav", "rain", 1.0, "y", "as bad as c"),
    ("d.wav", "a dog, barking", 2.0, "x", "é"),
]


@pytest.fixture
def scores(tmp_path):
    return write_table(tmp_path / "scores.csv", ROWS, HEADER)


def rows_of(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers_of(path) -> list[int]:
    """Which of ROWS a table holds."""
    return [[row[:2] for row in ROWS].index((row["wav_file_name"], row["text"])) for row in rows_of(path)]


def kept(scores, **options) -> list[int]:
    output = scores.with_name("kept.csv")
    report = select(scores, output, options=SelectionOptions(**options))
    assert report.kept == len(numbers_of(output)) == len(ROWS) - sum(report.dropped.values())
    return numbers_of(output)


def test_each_option_keeps_what_it_says(scores):
    assert kept(scores) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert kept(scores, min_score=5.0) == [0, 2, 3, 5]
    assert kept(scores, top=1, by="wav_file_name") == [0, 3, 5, 7]
    assert kept(scores, top=2, by="text") == [0, 1, 2, 3, 5]
    assert kept(scores, top=1, by="model_id") == [2, 3, 5]
    assert kept(scores, keep=0.25) == [0, 3]  # of the two rows with 7.5, the first
    assert kept(scores, keep=0.26) == [0, 2, 3]
    assert kept(scores, min_score=2.0, top=1, by="text", keep=0.5) == [0, 3]


def test_other_names_of_a_column_mean_the_same(tmp_path):
    names = ("file_name", "caption", "prediction_score")
    table = write_table(tmp_path / "scores.csv", [row[:3] for row in ROWS], names)
    report = select(table, tmp_path / "kept.csv", tmp_path / "pairs.csv", SelectionOptions(top=1, by="wav_file_name"))
    assert (report.kept, report.pairs) == (4, 2)
    select(table, tmp_path / "other.csv", options=SelectionOptions(top=1, by="wav_file_name", score_column="prediction_score"))
    assert (tmp_path / "other.csv").read_bytes() == (tmp_path / "kept.csv").read_bytes()


def test_rows_are_written_as_they_are(scores):
    output = scores.with_name("kept.csv")
    select(scores, output)
    assert output.read_bytes() == scores.read_bytes()


def test_pairs_are_the_best_and_the_worst_sound_of_each_prompt(scores):
    report = select(scores, pairs=scores.with_name("pairs.jsonl"))
    assert rows_of(scores.with_name("pairs.jsonl")) == [
        {"prompt": "rain", "chosen": "a.wav", "rejected": "c.wav", "score_chosen": 7.5, "score_rejected": 1.0, "margin": 6.5},
        {
            "prompt": "a dog, barking",
            "chosen": "b.wav",
            "rejected": "a.wav",
            "score_chosen": 9.0,
            "score_rejected": 2.0,
            "margin": 7.0,
        },
    ]
    assert report.pairs == 2 and report.without_pair == {"prompts with one sound only": 1}
    assert select(scores, pairs=scores.with_name("p.csv"), options=SelectionOptions(min_margin=6.5)).pairs == 1
    report = select(scores, pairs=scores.with_name("p.csv"), options=SelectionOptions(min_score=8))
    assert report.pairs == 1 and "prompts whose best sound is below 8" in report.without_pair


def test_a_cut_is_a_sound(tmp_path):
    rows = [("long.wav", "rain", 0, 10, 3.0), ("long.wav", "rain", 10, 20, 8.0), ("long.wav", "wind", 10, 20, 9.0)]
    table = write_table(tmp_path / "scores.csv", rows, ("wav_file_name", "text", "start", "end", "pred_score"))
    report = select(table, tmp_path / "kept.csv", tmp_path / "pairs.csv", SelectionOptions(top=1, by="wav_file_name"))
    assert report.kept == 2 and [row["text"] for row in rows_of(tmp_path / "kept.csv")] == ["rain", "wind"]
    pair = rows_of(tmp_path / "pairs.csv")[0]
    assert (pair["chosen_start"], pair["chosen_end"], pair["rejected_start"]) == ("10", "20", "0")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_every_format_selects_the_same(tmp_path, suffix):
    """Scores are float32: 0.7 in Parquet is a little less, and must pass `--min-score 0.7` all the same."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    scores = [0.7, 0.1, 0.69999, 0.70001]
    columns = {"wav_file_name": [f"{n}.wav" for n in range(4)], "text": ["rain"] * 4}
    table, output = tmp_path / f"scores{suffix}", tmp_path / f"kept{suffix}"
    rows = [{name: values[n] for name, values in columns.items()} | {"pred_score": scores[n]} for n in range(4)]
    if suffix == ".parquet":
        parquet.write_table(pa.table({**columns, "pred_score": pa.array(scores, pa.float32())}), table)
    elif suffix == ".jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        write_table(table, [row.values() for row in rows], rows[0])
    report = select(table, output, tmp_path / "pairs.csv", SelectionOptions(min_score=0.7))
    assert report.kept == 2 and report.pairs == 1
    assert rows_of(tmp_path / "pairs.csv")[0]["margin"] == "0.60001"
    if suffix == ".parquet":
        assert parquet.read_table(output).schema == parquet.read_table(table).schema
        assert parquet.read_table(output)["wav_file_name"].to_pylist() == ["0.wav", "3.wav"]
        select(table, output.with_suffix(".csv"), options=SelectionOptions(min_score=0.7))
        output = output.with_suffix(".csv")
    assert [(row["wav_file_name"], str(row["pred_score"])) for row in rows_of(output)] == [
        ("0.wav", "0.7"),
        ("3.wav", "0.70001"),
    ]


def test_many_rows_are_selected_as_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "BLOCK", 100)
    rng = np.random.default_rng(0)
    rows = [(f"{rng.integers(300)}.wav", f"caption {rng.integers(200)}", round(rng.uniform(0, 10), 1)) for _ in range(3000)]
    table = write_table(tmp_path / "scores.csv", rows, HEADER[:3])
    options = SelectionOptions(min_score=2.0, top=2, by="text", keep=0.3)
    select(table, tmp_path / "kept.csv", tmp_path / "pairs.csv", options)

    ordered = sorted((n for n, row in enumerate(rows) if row[2] >= 2.0), key=lambda n: (-rows[n][2], n))
    groups, left = {}, []
    for n in ordered:
        groups.setdefault(rows[n][1], []).append(n)
        left += [n] if len(groups[rows[n][1]]) <= 2 else []
    expected = sorted(left[: -(-len(left) * 3 // 10)])
    found = [(row["wav_file_name"], row["text"], float(row["pred_score"])) for row in rows_of(tmp_path / "kept.csv")]
    assert found == [rows[n] for n in expected]
    captions = {text: [row for row in rows if row[1] == text] for text in dict.fromkeys(row[1] for row in rows)}
    pairs = {row["prompt"]: (row["chosen"], row["rejected"]) for row in rows_of(tmp_path / "pairs.csv")}
    assert pairs == {
        text: (max(same, key=lambda row: row[2])[0], min(same, key=lambda row: row[2])[0])  # of equal ones, the first
        for text, same in captions.items()
        if len({row[2] for row in same}) > 1 and max(row[2] for row in same) >= 2.0
    }


def test_the_command_reports_what_it_dropped(scores, tmp_path):
    run = command("select", scores, "--min-score", 2, "--top", 2, "--by", "text", "--keep", 0.5, "--output", tmp_path / "k.csv")
    assert run.returncode == 0, run.stderr
    assert numbers_of(tmp_path / "k.csv") == [0, 2, 3]
    lines = [" ".join(line.split()) for line in run.stdout.splitlines()]
    assert lines[:4] == [
        "3 of 8 rows kept (37.5%)",
        "2 below the least score, 2",
        "1 not among the 2 best of their text",
        "2 not in the best 0.5 of the rows left",
    ]
    histogram = [line.split() for line in lines[6:26]]
    assert sum(int(line[1]) for line in histogram) == 8 and sum(int(line[2]) for line in histogram) == 3
    assert histogram[-1] == ["8.600", "1", "1", "#" * 20]


def test_rows_without_a_score_stop_it_or_are_counted(tmp_path):
    rows = [("a.wav", "rain", 1.0), ("b.wav", "rain", "nan"), ("c.wav", "", 3.0), ("d.wav", "rain", 2.0)]
    table = write_table(tmp_path / "scores.csv", rows, HEADER[:3])
    assert f"'{table}', line 3: no number in pred_score, got 'nan'; fix it" in refusal("select", table)
    report = select(table, tmp_path / "kept.csv", tmp_path / "pairs.csv", SelectionOptions(on_error="skip"))
    assert report.dropped == {"no number in pred_score": 1, "no text": 1}
    assert [row["wav_file_name"] for row in rows_of(tmp_path / "kept.csv")] == ["a.wav", "d.wav"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top", "3"], "--top and --by go together"),
        (["--keep", "30"], "keep is a share, above 0 and up to 1, got 30"),
        (["--top", "3", "--by", "attribute"], "needs the column attribute"),
        (["--score-column", "clap_score"], "needs the column clap_score"),
        (["--output", "{scores}"], "would overwrite the input"),
        (["--output", "{folder}/same.csv", "--pairs", "{folder}/same.csv"], "would overwrite the input"),
        (["--output", "kept.txt"], "must end in .csv or .jsonl or .parquet"),
    ],
)
def test_wrong_calls_are_explained(scores, tmp_path, arguments, message):
    arguments = [word.format(scores=scores, folder=tmp_path) for word in arguments]
    assert message in refusal("select", scores, *arguments)
    assert "has no rows" in refusal("select", write_table(tmp_path / "empty.csv", [], HEADER))


def test_what_made_the_scores_is_said_of_the_rows_kept(scores, tmp_path):
    scores.with_name("scores.csv.json").write_text('{"model": "clap", "kind": "cosine"}')
    select(scores, tmp_path / "kept.csv", options=SelectionOptions(keep=0.5))
    assert json.loads((tmp_path / "kept.csv.json").read_text()) == {"model": "clap", "kind": "cosine"}
