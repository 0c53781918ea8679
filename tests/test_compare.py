"""`xacle compare`: paired tests with scipy's numbers, and nothing compared that was not scored on the same prompts."""

import csv
import json

import numpy as np
import pytest
import soundfile as sf
from scipy import stats
from test_scoring import command, refusal, write_table

from xacle.demo.tiny_models import CAPTIONS, make_sound
from xacle.scoring.comparison import compare, compare_each, names_of, write_comparison
from xacle.scoring.score_files import write_sidecar
from xacle.scoring.significance import bootstrap_means, holm, interval, paired_test
from xacle.scoring.table_job import ScoringOptions, score_table

SCORED = ("wav_file_name", "text", "pred_score")


def test_p_values_and_intervals_are_scipys():
    rng = np.random.default_rng(0)
    second = rng.normal(5, 2, 120)
    first = np.round(second + rng.normal(0.15, 1, 120), 1)
    means = bootstrap_means(np.stack([first, second]), 20000)
    test = paired_test(first, second, means[0] - means[1])
    assert test.difference == pytest.approx((first - second).mean())
    assert test.p_t_test == pytest.approx(stats.ttest_rel(first, second).pvalue, rel=1e-9)
    reference = stats.bootstrap((first - second,), np.mean, n_resamples=20000, method="percentile", rng=1)
    assert (test.low, test.high) == pytest.approx(tuple(reference.confidence_interval), abs=0.01)
    # Another test of the same question: random signs instead of random prompts.
    signs = stats.permutation_test((first, second), lambda a, b: np.mean(a - b), permutation_type="samples", rng=1)
    assert 0.02 < test.p_bootstrap < 0.9 and test.p_bootstrap == pytest.approx(signs.pvalue, abs=0.02)
    assert (test.wins, test.ties, test.losses) == tuple(int(c) for c in [(first > second).sum(), 0, (first < second).sum()])


def test_p_values_are_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(1)
    found = []
    for seed in range(300):
        scores = rng.normal(size=(2, 60))
        means = bootstrap_means(scores, 500, seed)
        found.append(paired_test(*scores, means[0] - means[1]).p_bootstrap)
    assert np.mean(np.array(found) < 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)


def test_draws_are_paired_seeded_and_the_same_in_any_number_of_steps(monkeypatch):
    scores = np.random.default_rng(0).normal(size=(3, 50))
    means = bootstrap_means(scores, 100, seed=7)
    assert means.shape == (3, 100)
    np.testing.assert_array_equal(means, bootstrap_means(scores, 100, seed=7))
    shifted = bootstrap_means(np.stack([scores[0], scores[0] + 1]), 100)
    np.testing.assert_allclose(shifted[1] - shifted[0], 1)  # the same prompts for both
    monkeypatch.setattr("xacle.scoring.significance.RESAMPLED_AT_ONCE", 3 * 50 * 7)
    np.testing.assert_array_equal(means, bootstrap_means(scores, 100, seed=7))


def test_systems_without_any_variance():
    same, draws = np.ones(5), np.zeros(100)
    test = paired_test(same, same, draws)
    assert (test.p_t_test, test.p_bootstrap, test.ties) == (1.0, 1.0, 5)
    test = paired_test(same + 1, same, draws + 1)
    assert test.p_t_test == 0.0 and test.p_bootstrap == pytest.approx(1 / 101) and test.wins == 5


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm's steps by hand
    assert holm([0.2]) == [0.2]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))


# --- Tables --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def systems(tmp_path):
    """Three systems' tables on 80 prompts, and their scores: b is 0.6 better on average. Their files are called differently."""
    rng = np.random.default_rng(0)
    base = rng.normal(6, 2, 80)
    scores = {"a": base, "b": base + rng.normal(0.6, 1, 80), "c": base + rng.normal(0, 1, 80)}
    tables = []
    for name, values in scores.items():
        rows = [(f"{name}_{prompt}.wav", f"prompt {prompt}", value) for prompt, value in enumerate(values.tolist())]
        order = rng.permutation(80)
        tables.append(write_table(tmp_path / f"{name}.csv", [rows[index] for index in order], SCORED))
    return tables, scores


def test_systems_are_paired_by_caption_where_files_are_called_differently(systems):
    tables, scores = systems
    comparison = compare(tables)
    assert comparison.paired_by == "caption (text)" and comparison.prompts == 80
    assert comparison.systems[0].name == "b"
    assert {system.name: system.mean for system in comparison.systems} == pytest.approx(
        {name: values.mean() for name, values in scores.items()}
    )
    found = {(pair.first, pair.second): pair for pair in comparison.pairs}
    assert len(found) == 3
    for (first, second), pair in found.items():
        p_value = stats.ttest_rel(scores[first], scores[second]).pvalue
        assert pair.test.p_t_test == pytest.approx(p_value, rel=1e-9) and pair.p_t_test_holm >= pair.test.p_t_test
        assert pair.test.low < pair.test.difference < pair.test.high
        assert ("b" in (first, second)) == (pair.p_bootstrap_holm < 0.05) == (pair.p_t_test_holm < 0.05)
    assert compare(tables) == comparison  # seeded


def test_tables_that_score_wrote_are_paired_by_caption(tiny_folder, tmp_path):
    captions = ["Rain", "A siren", "A clock", "An engine"]
    for system in "ab":
        for number in range(4):
            sf.write(tmp_path / f"{system}{number}.wav", make_sound(list(CAPTIONS)[number], 1.0 + 0.1 * number), 16000)
        pairs = [(f"{system}{number}.wav", text) for number, text in enumerate(captions)]
        table = write_table(tmp_path / f"{system}_pairs.csv", pairs, SCORED[:2])
        score_table(tiny_folder, table, tmp_path, tmp_path / f"{system}.csv", ScoringOptions(device="cpu", with_text=True))
    comparison = compare([tmp_path / "a.csv", tmp_path / "b.csv"])
    assert comparison.paired_by == "caption (text)" and comparison.prompts == 4 and comparison.pairs[0].test.ties == 4


def test_else_by_file_name(tmp_path):
    names = [f"{number}.wav" for number in range(6)]
    first = write_table(tmp_path / "a.csv", [(name, "Rain", number) for number, name in enumerate(names)], SCORED)
    second = write_table(tmp_path / "b.csv", [(name, number + 1) for number, name in enumerate(names)][::-1], SCORED[::2])
    comparison = compare([first, second])
    assert comparison.paired_by == "file name (wav_file_name)"
    assert comparison.pairs[0].first == "b" and comparison.pairs[0].test.wins == 6
    captions = [("x.wav", "Rain", 1), ("x.wav", "A dog", 2), ("y.wav", "Rain", 3), ("y.wav", "A dog", 4)]
    first = write_table(tmp_path / "c.csv", captions, SCORED)
    second = write_table(tmp_path / "d.csv", captions[::-1], SCORED)
    comparison = compare([first, second])
    assert comparison.paired_by == "file name and caption"
    assert comparison.pairs[0].test.ties == 4 and comparison.pairs[0].test.p_bootstrap == 1.0


def test_the_command(systems, tmp_path):
    tables, scores = systems
    outputs = [tmp_path / "all.json", tmp_path / "pairs.csv"]
    result = command("compare", *tables, "--output", outputs[0], "--plot", tmp_path / "plot.png")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "3 systems, 80 prompts, paired by caption (text)"
    assert lines[3].split()[:2] == ["b", f"{scores['b'].mean():.3f}"]
    wins = int((scores["b"] > scores["a"]).sum())
    row = next(line for line in lines if line.startswith("b - a"))
    assert f"{wins}/0/{80 - wins}" in row and row.rstrip().endswith("*")
    assert "corrected for 3 comparisons (Holm)" in lines[-1]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads(outputs[0].read_text())
    assert written["systems"][0]["name"] == "b" and len(written["pairs"]) == 3
    write_comparison(outputs[1], compare(tables))
    with outputs[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["first"] for row in rows][:2] == ["b", "b"]
    assert float(rows[0]["difference"]) == pytest.approx(float(rows[0]["mean_first"]) - float(rows[0]["mean_second"]))


def test_folders_of_tables(systems, tmp_path):
    (tmp_path / "a.csv.rejected.csv").write_text("line,reason\n2,nothing\n")  # what xacle score leaves
    assert {system.name for system in compare([tmp_path], 100).systems} == {"a", "b", "c"}
    assert names_of([tmp_path / "x/scores.csv", tmp_path / "y/scores.csv"]) == ["x/scores", "y/scores"]


def test_what_cannot_be_paired_is_listed(systems, tmp_path):
    tables, _ = systems
    lines = tables[0].read_text().splitlines()
    lost = [line.split(",")[1] for line in lines[-2:]]
    tables[0].write_text("\n".join(lines[:-2]) + "\n")
    result = command("compare", *tables)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "a.csv' lacks 2 of 80:" in result.stderr and all(prompt in result.stderr for prompt in lost)
    assert "b.csv' lacks" not in result.stderr
    without = [write_table(tmp_path / f"n{n}.csv", [(f"{n}_{i}.wav", i) for i in range(30)], SCORED[::2]) for n in "xy"]
    with pytest.raises(ValueError, match=r"(?s)lacks 30 of 60.*\.\.\. and 10 more.*a column text"):
        compare(without)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (["a.csv"], "at least two tables"),
        (["a.csv", "a.csv"], "a.csv' is given twice"),
        (["missing"], "no table at '.*missing'"),
        (["a.csv", "missing.csv"], "no table at '.*missing.csv'"),
        (["one.csv", "two.csv"], "at least 2 prompts"),
        (["a.csv", "ratings.csv"], "needs the column pred_score"),
    ],
)
def test_wrong_tables_are_explained(systems, tmp_path, tables, message):
    for name in ("one", "two"):
        write_table(tmp_path / f"{name}.csv", [("x.wav", "Rain", 1)], SCORED)
    write_table(tmp_path / "ratings.csv", [("x.wav", "Rain", 1)], ("wav_file_name", "text", "average_score"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        compare([tmp_path / table for table in tables])


def test_no_table_is_overwritten_or_taken_for_another_pair(systems, tmp_path):
    tables, _ = systems
    content = tables[1].read_text()
    for given, output, message in [
        (tables[:2], tables[1], "b.csv' would overwrite the input"),
        ([tmp_path], tmp_path / "b.csv", "b.csv' would overwrite the input"),
        ([tmp_path], tmp_path / "new.csv", "would be one of the folder's tables the next time"),
    ]:
        assert message in refusal("compare", *given, "--output", output)
    assert tables[1].read_text() == content and not (tmp_path / "new.csv").exists()
    rows = [("x.wav", "Rain", 1), ("y.wav", "Rain", 2), ("z.wav", "A dog", 3)]  # a caption twice: paired by file name
    first, second = write_table(tmp_path / "f.csv", rows, SCORED), write_table(tmp_path / "s.csv", rows, SCORED)
    assert compare([first, second]).paired_by == "file name (wav_file_name)"
    second.write_text(second.read_text().replace("A dog", "A cat"))
    with pytest.raises(
        ValueError, match=r"s\.csv', line 4: 'z\.wav' has the caption 'A cat', but in .* line 4, 'A dog'; the tables"
    ):
        compare([first, second])


# --- By another column ---------------------------------------------------------------------------------------------------


def test_the_values_of_a_column_are_the_systems_of_one_table(systems, tmp_path):
    tables, _ = systems
    rows = [(*row, table.stem, "same") for table in tables for row in list(csv.reader(table.open()))[1:]]
    (tmp_path / "all").mkdir()
    header = (*SCORED, "model_id", "note")
    together = write_table(tmp_path / "all/all.csv", rows, header)
    assert compare([together], 200, by="model_id") == compare(tables, 200)
    assert "has one note: same" in refusal("compare", together, "--by", "note")
    with pytest.raises(ValueError, match="needs the column attribute"):
        compare([together], by="attribute")
    write_table(together, rows[:-1], header)
    assert "'c' lacks 1 of 80" in refusal("compare", together, "--by", "model_id")


def test_tables_are_compared_within_each_value_of_a_column(systems, tmp_path):
    tables, _ = systems
    parts = {"even": [], "odd": []}
    for table in tables:
        rows = list(csv.reader(table.open()))[1:]
        rows = [(*row, "even" if int(row[1].split()[1]) % 2 == 0 else "odd") for row in rows]
        for value, part in parts.items():
            (tmp_path / value).mkdir(exist_ok=True)
            part.append(write_table(tmp_path / value / table.name, [row[:3] for row in rows if row[3] == value], SCORED))
        write_table(table, rows, (*SCORED, "attribute"))
    found = compare_each(tables, "attribute", 200)
    assert found == {value: compare(part, 200) for value, part in parts.items()}
    run = command("compare", *tables, "--by", "attribute", "--bootstrap", 200, "--output", tmp_path / "by.csv")
    assert run.returncode == 0 and "attribute: even\n3 systems, 40 prompts" in run.stdout
    with (tmp_path / "by.csv").open(newline="") as file:
        assert [row["attribute"] for row in csv.DictReader(file)] == ["even"] * 3 + ["odd"] * 3


def test_cosines_are_not_compared_with_ratings(systems):
    tables, _ = systems
    write_sidecar(tables[1], "some-clap", "cosine")
    with pytest.raises(ValueError, match="holds cosines of a CLAP, other tables ratings"):
        compare(tables, 100)
