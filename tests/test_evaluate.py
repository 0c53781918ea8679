"""`xacle evaluate` and `xacle ensemble`: the challenge's numbers, and nothing missing silently."""

import csv
import shutil

import numpy as np
import pytest
from test_scoring import command, read_scores, refusal, write_table

from xacle.scoring.ensemble import ensemble, rank_average
from xacle.scoring.evaluation import evaluate
from xacle.scoring.metrics import alignment_metrics, bootstrap_intervals
from xacle.scoring.score_files import ScoreFile, write_sidecar

# --- A second opinion: the definitions of the challenge's evaluator, in plain Python --------------------------------------


def average_ranks(values):
    return [1 + sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values]


def pearson(xs, ys):
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    variances = sum((x - mean_x) ** 2 for x in xs) * sum((y - mean_y) ** 2 for y in ys)
    return covariance / variances**0.5 if variances > 0 else 0.0


def tau_b(xs, ys):
    agreement = ties_x = ties_y = 0
    for i in range(len(xs)):
        for j in range(i):
            dx, dy = xs[i] - xs[j], ys[i] - ys[j]
            agreement += (dx * dy > 0) - (dx * dy < 0)
            ties_x, ties_y = ties_x + (dx == 0), ties_y + (dy == 0)
    pairs = len(xs) * (len(xs) - 1) / 2
    size = ((pairs - ties_x) * (pairs - ties_y)) ** 0.5
    return agreement / size if size else 0.0


@pytest.fixture
def panel():
    """300 clips with mean ratings on the quarter-point grid of four listeners (many ties), and predictions with some."""
    generator = np.random.default_rng(0)
    ratings = generator.integers(0, 11, size=(300, 4)).mean(axis=1)
    predictions = np.round(ratings + generator.normal(0, 2.5, size=300), 1)
    return predictions, ratings


def test_the_definitions_of_the_challenge(panel):
    predictions, ratings = (values.tolist() for values in panel)
    metrics = alignment_metrics(predictions, ratings)
    assert metrics["SRCC"] == pytest.approx(pearson(average_ranks(predictions), average_ranks(ratings)), abs=1e-12)
    assert metrics["LCC"] == pytest.approx(pearson(predictions, ratings), abs=1e-12)
    assert metrics["KTAU"] == pytest.approx(tau_b(predictions, ratings), abs=1e-12)
    squares = [(p - r) ** 2 for p, r in zip(predictions, ratings, strict=True)]
    assert metrics["MSE"] == pytest.approx(sum(squares) / 300, abs=1e-12)
    constant = alignment_metrics([5.0] * 300, ratings)
    assert (constant["SRCC"], constant["LCC"], constant["KTAU"]) == (0.0, 0.0, 0.0)


def test_wrong_input_is_refused():
    for predictions, ratings in ([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, np.nan], [1.0, 2.0]):
        with pytest.raises(ValueError, match=r"needed|finite"):
            alignment_metrics(predictions, ratings)


def test_intervals_cover_the_estimate_and_shrink_with_the_sample(panel):
    predictions, ratings = panel
    whole = bootstrap_intervals(predictions, ratings, 200)
    part = bootstrap_intervals(predictions[:50], ratings[:50], 200)
    for name, value in alignment_metrics(predictions, ratings).items():
        low, high = whole[name]
        assert low < value < high
        assert high - low < part[name][1] - part[name][0]
    assert bootstrap_intervals(predictions, ratings, 200) == whole  # the same every time


# --- Files ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, panel):
    predictions, ratings = panel
    names = [f"{number:05}.wav" for number in range(300)]
    scored = write_table(
        tmp_path / "pred.csv",
        list(zip(reversed(names), reversed(predictions.tolist()), strict=True)),
        ("wav_file_name", "pred_score"),
    )
    rows = [
        (name, "a caption", rating, f"system{number % 3}")
        for number, (name, rating) in enumerate(zip(names, ratings, strict=True))
    ]
    rated = write_table(tmp_path / "ratings.csv", rows, ("wav_file_name", "text", "average_score", "model_id"))
    return scored, rated


def test_files_are_matched_by_name(files, panel, tmp_path):
    evaluation = evaluate(*files, resamples=50)
    assert evaluation.metrics == alignment_metrics(*panel)
    np.testing.assert_array_equal(evaluation.predictions, panel[0])
    np.testing.assert_array_equal(evaluation.ratings, panel[1])
    assert evaluation.pairs == 300
    for number, row in enumerate(evaluation.systems.values()):
        chosen = slice(number, None, 3)
        assert row["SRCC"] == alignment_metrics(panel[0][chosen], panel[1][chosen])["SRCC"]
        assert row["clips"] == 100
    assert evaluation.system_srcc in (-1.0, -0.5, 0.5, 1.0)  # of three systems


def test_listeners_are_averaged(tmp_path):
    rows = [("a.wav", "x", 4, "l1"), ("b.wav", "y", 8, "l1"), ("a.wav", "x", 7, "l2"), ("b.wav", "y", 9, "l3")]
    path = write_table(tmp_path / "listeners.csv", rows, ("wav_file_name", "text", "score", "listener_id"))
    assert {name: rating.mean for (name, _), rating in ScoreFile(path).ratings().items()} == {"a.wav": 5.5, "b.wav": 8.5}


def test_other_names_of_the_columns_are_read(tmp_path):
    pairs = [("a.wav", "Rain"), ("a.wav", "A dog"), ("b.wav", "Rain")]
    scored = write_table(
        tmp_path / "s.csv", [(*pair, n) for n, pair in enumerate(pairs)], ("path", "caption", "prediction_score")
    )
    rated = write_table(
        tmp_path / "r.csv", [(*pair, 9 - n) for n, pair in enumerate(pairs)], ("file_name", "text", "average_score")
    )
    evaluation = evaluate(scored, rated, resamples=0)
    assert evaluation.pairs == 3 and evaluation.metrics["SRCC"] == pytest.approx(-1)


def test_the_command(files, tmp_path, panel):
    scored, rated = files
    result = command("evaluate", scored, rated, "--output", tmp_path / "out.csv", "--plot", tmp_path / "plot.png")
    assert result.returncode == 0, result.stderr
    assert "SRCC" in result.stdout and "system-level SRCC" in result.stdout
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["metric"] for row in rows] == ["SRCC", "LCC", "KTAU", "MSE", "N"]
    assert float(rows[0]["value"]) == alignment_metrics(*panel)["SRCC"]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_several_tables_stand_side_by_side(files, tmp_path, panel):
    scored, rated = files
    cosines = write_table(
        tmp_path / "clap.csv",
        [(f"{n:05}.wav", value / 20) for n, value in enumerate(panel[0].tolist())],
        ("wav_file_name", "pred_score"),
    )
    write_sidecar(cosines, "some-clap", "cosine")
    result = command("evaluate", scored, cosines, "--ratings", rated, "--output", tmp_path / "out.csv")
    assert result.returncode == 0, result.stderr
    assert result.stdout == command("evaluate", scored, cosines, rated).stdout
    header, first, second, note = result.stdout.splitlines()[:4]
    srcc = f"{alignment_metrics(*panel)['SRCC']:.4f}"
    assert header.split() == ["N", "300", "SRCC", "LCC", "KTAU", "MSE"]
    assert first.split()[:2] == ["pred", srcc] and second.split()[:3] == ["clap", "(some-clap)", srcc]
    assert second.split()[-1] == "-" and note == "-: the scores are cosines, not ratings"
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert rows["MSE"]["clap"] == "" and float(rows["MSE"]["pred"]) == alignment_metrics(*panel)["MSE"]
    alone = evaluate(cosines, rated, resamples=0)
    assert list(alone.metrics) == ["SRCC", "LCC", "KTAU"] and "no MSE" in str(alone) and "scores of some-clap" in str(alone)
    assert "the table of ratings last or with --ratings" in refusal("evaluate", scored)


def test_results_for_each_value_of_any_column(files, tmp_path, panel):
    scored, rated = files
    rows = [(f"{n:05}.wav", "a caption", r, f"system{n % 3}", "loud" if n % 2 else "") for n, r in enumerate(panel[1])]
    rated = write_table(tmp_path / "by.csv", rows, ("wav_file_name", "text", "average_score", "model_id", "attribute"))
    evaluation = evaluate(scored, rated, resamples=0, by="attribute")
    assert list(evaluation.systems) == ["loud"] and evaluation.systems["loud"]["clips"] == 150
    assert "attribute" in str(evaluation) and evaluation.system_srcc is None
    with_column = write_table(
        tmp_path / "kept.csv",
        [(f"{n:05}.wav", p, f"scene{n % 5}") for n, p in enumerate(panel[0])],
        ("wav_file_name", "pred_score", "scene"),
    )
    assert len(evaluate(with_column, rated, resamples=0, by="scene").systems) == 5  # of the scores
    assert "no column mood in" in refusal("evaluate", scored, rated, "--by", "mood")


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ("wav_file_name,pred_score\n00000.wav,1\n", "lacks 299 of the 300 pairs"),
        ("wav_file_name,score\n00000.wav,1\n", "needs the column pred_score"),
        ("wav_file_name,pred_score\n00000.wav,good\n", "line 2: pred_score must be a number, got 'good'"),
        ("wav_file_name,pred_score\n,1\n", "line 2: no wav_file_name"),
        ("wav_file_name,pred_score\n00000.wav,nan\n", "line 2: pred_score must be a number"),
        ("wav_file_name,pred_score\n00000.wav,1\n00000.wav,2\n", "line 3: '00000.wav' is listed twice"),
    ],
)
def test_what_is_missing_or_wrong_is_reported(files, tmp_path, predictions, message):
    (tmp_path / "bad.csv").write_text(predictions)
    assert message in refusal("evaluate", tmp_path / "bad.csv", files[1])


# --- Ensemble ------------------------------------------------------------------------------------------------------------


def test_ranks_are_averaged_and_scaled():
    scores = rank_average(np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [10.0, 30.0, 20.0, 40.0, 40.0]]))
    mean_ranks = np.array([1.0, 2.5, 2.5, 4.25, 4.75])  # the second member's tie shares rank 4.5
    np.testing.assert_allclose(scores, 10 * (mean_ranks - 1) / 4)
    monotone = rank_average(np.array([[0.1, 0.2, 0.9], [1.0, 5.0, 6.0]]))
    np.testing.assert_allclose(monotone, [0, 5, 10])
    with pytest.raises(ValueError, match="finite scores"):
        rank_average(np.array([[1.0, np.nan]]))


def test_the_ensemble_of_noisy_members_beats_them(panel):
    _, ratings = panel
    generator = np.random.default_rng(1)
    members = np.stack([ratings + generator.normal(0, 3, size=300) for _ in range(3)])
    single = [alignment_metrics(member, ratings)["SRCC"] for member in members]
    assert alignment_metrics(rank_average(members), ratings)["SRCC"] > max(single)


def test_the_ensemble_command(tmp_path):
    header = ("wav_file_name", "pred_score")
    first = write_table(tmp_path / "a.csv", [("x.wav", 1), ("y.wav", 2), ("z.wav", 3)], header)
    second = write_table(tmp_path / "b.csv", [("z.wav", 9), ("x.wav", 8), ("y.wav", 7)], header)
    result = command("ensemble", first, second, "--output", tmp_path / "e.csv")
    assert result.returncode == 0, result.stderr
    assert read_scores(tmp_path / "e.csv") == [("x.wav", 2.5), ("y.wav", 2.5), ("z.wav", 10.0)]
    assert "3 clips, 2 of them tied" in result.stderr
    write_table(tmp_path / "b.csv", [("z.wav", 9), ("x.wav", 8), ("w.wav", 7)], header)
    assert "lacks 1 of 4 pairs, among them w.wav" in refusal("ensemble", first, second, "--output", tmp_path / "e.csv")
    assert "at least two" in refusal("ensemble", first, "--output", tmp_path / "e.csv")
    assert "would overwrite the input" in refusal("ensemble", first, second, "--output", second)


def test_clips_with_several_captions_are_distinguished_by_them(tmp_path):
    def write(name, header, rows):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return tmp_path / name

    pairs = [("a.wav", "Rain"), ("a.wav", "A dog"), ("b.wav", "Rain"), ("b.wav", "A dog")]
    rated = write(
        "r.csv",
        ["wav_file_name", "text", "average_score"],
        [(*pair, score) for pair, score in zip(pairs, (9, 1, 2, 8), strict=True)],
    )
    scored = write(
        "s.csv",
        ["wav_file_name", "text", "pred_score"],
        [(*pair, score) for pair, score in zip(pairs[::-1], (7, 3, 0, 9), strict=True)],
    )
    evaluation = evaluate(scored, rated, resamples=0)
    assert evaluation.pairs == 4
    assert evaluation.predictions.tolist() == [9, 0, 3, 7] and evaluation.ratings.tolist() == [9, 1, 2, 8]
    shutil.copy(scored, tmp_path / "copy.csv")
    ensemble([scored, tmp_path / "copy.csv"], tmp_path / "e.csv")
    rows = list(csv.DictReader((tmp_path / "e.csv").open(newline="")))
    assert [(row["wav_file_name"], row["text"]) for row in rows] == pairs[::-1]
    nameless = write("n.csv", ["wav_file_name", "pred_score"], [("a.wav", 1), ("b.wav", 2)])
    with pytest.raises(ValueError, match=r"n\.csv', line 2: 'a\.wav' needs its caption"):
        evaluate(nameless, rated, resamples=0)
    twice = write("t.csv", ["wav_file_name", "pred_score"], [("a.wav", 1), ("a.wav", 2)])
    with pytest.raises(ValueError, match="listed twice; one score a pair is needed; of clips with several captions"):
        evaluate(twice, write("u.csv", ["wav_file_name", "average_score"], [("a.wav", 1), ("b.wav", 2)]), resamples=0)


# --- Nothing overwritten, nothing left out silently -----------------------------------------------------------------


@pytest.fixture
def three(tmp_path):
    """Predictions and ratings of three pairs, each clip with a caption of its own."""
    names, texts = ["a.wav", "b.wav", "c.wav"], ["Rain", "A dog", "A clock"]
    scored = write_table(tmp_path / "s.csv", zip(names, texts, [1, 2, 3], strict=True), ("wav_file_name", "text", "pred_score"))
    rated = write_table(
        tmp_path / "r.csv", zip(names, texts, [4, 5, 6], strict=True), ("wav_file_name", "text", "average_score")
    )
    return scored, rated


def test_outputs_are_checked_before_any_work(three, tmp_path):
    scored, rated = three
    contents = scored.read_text(), rated.read_text()
    (tmp_path / "folder.csv").mkdir()
    for arguments, message in [
        (["evaluate", scored, rated, "--output", tmp_path / "folder.csv/../r.csv"], "r.csv' would overwrite the input"),
        (["evaluate", scored, rated, "--output", scored], "s.csv' would overwrite the input"),
        (["evaluate", scored, rated, "--output", tmp_path / "m.xlsx"], "must end in .csv"),
        (["evaluate", scored, rated, "--output", tmp_path / "nowhere/m.csv"], "does not exist"),
        (["ensemble", scored, scored, "--output", tmp_path / "folder.csv"], "is a folder; name a file to write"),
        (["ensemble", scored, scored, "--output", tmp_path / "e.csv"], "s.csv' is given twice"),
    ]:
        assert message in refusal(*arguments)
    assert (scored.read_text(), rated.read_text()) == contents and not (tmp_path / "e.csv").exists()


def test_another_caption_is_another_pair(three, tmp_path):
    scored, rated = three
    lines = scored.read_text().replace("Rain", "\0").replace("A dog", "Rain ").replace("\0", "A dog")
    swapped = tmp_path / "swapped.csv"
    swapped.write_text(lines)
    message = r"swapped\.csv', line 2: 'a\.wav' has the caption 'A dog', but in '.*[rs]\.csv', line 2, 'Rain' \(.*2 rows\)"
    with pytest.raises(ValueError, match=message):
        evaluate(swapped, rated)
    with pytest.raises(ValueError, match=message):
        ensemble([scored, swapped], tmp_path / "e.csv")
    swapped.write_text(scored.read_text().replace("Rain", "Rain "))
    assert evaluate(swapped, rated).pairs == 3
    columns = write_table(tmp_path / "columns.csv", [("a.wav", "Rain", 1, 2)], ("wav_file_name", "text", "pred_score", "text"))
    with pytest.raises(ValueError, match=r"columns\.csv', line 1: the column text occurs twice"):
        evaluate(columns, rated)


def test_what_is_left_out_or_off_the_scale_is_warned_of(three, tmp_path):
    scored, rated = three
    scored.write_text(scored.read_text() + "d.wav,Wind,4\ne.wav,Wind,5\n")
    rated.write_text(rated.read_text().replace(",6", ",60"))
    result = command("evaluate", scored, rated)
    assert result.returncode == 0
    first, second = result.stderr.splitlines()
    assert first.startswith("2 of the 5 predictions have no rating in") and first.endswith("the first d.wav")
    assert "run from 4 to 60, where 0 to 10 is expected" in second
    rated.write_text("\n".join(rated.read_text().splitlines()[:2]) + "\n")
    with pytest.raises(ValueError, match=r"r\.csv' rates 1 pair: at least 2 are needed"):
        evaluate(scored, rated)
