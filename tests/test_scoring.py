"""`Scorer` and the `xacle` command: many pairs, long clips, tables, and every way a table can be wrong."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile as sf
import soxr
from conftest import GOLDEN
from typer.testing import CliRunner

from xacle.cli import app
from xacle.core.columns import FILE_COLUMNS, TEXT_COLUMNS
from xacle.core.tables import read_pairs, shortest, write_problems
from xacle.demo.tiny_models import make_sound
from xacle.modeling_xacle import XacleForConditionalGeneration
from xacle.scoring.scorer import Scorer


@pytest.fixture(scope="module")
def scorer(tiny_folder):
    return Scorer.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def wav_dir(tmp_path_factory):
    """Sounds of several lengths and formats in a folder."""
    folder = tmp_path_factory.mktemp("wav")
    sf.write(folder / "rain.wav", make_sound("rain", 4.0), 16000)
    sf.write(folder / "rain.flac", make_sound("rain", 4.0), 16000)
    sf.write(folder / "siren.ogg", make_sound("siren", 10.0), 16000)
    sf.write(folder / "long.wav", make_sound("engine", 31.0), 16000)
    sf.write(folder / "clock.mp3", make_sound("clock", 0.5), 16000)
    return folder


PAIRS = [
    ("rain.wav", "Rain falls"),
    ("siren.ogg", "A siren, rising and falling"),
    ("long.wav", "An engine hums at a low pitch for a long time"),
    ("rain.wav", "A clock ticks"),
    ("rain.flac", "Rain falls"),
    ("clock.mp3", "A clock ticks"),
]


COMMAND = [sys.executable, "-c", "import sys; from xacle.cli import main; sys.argv[0] = 'xacle'; main()"]
PLAIN = {**{name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}, "NO_COLOR": "1", "COLUMNS": "200"}


def command(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=PLAIN, **options)


def refusal(*arguments) -> str:
    """What a command says that refuses to work, run in this process: sooner than in one that imports all anew."""
    run = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200"}).invoke(app, list(map(str, arguments)))
    assert isinstance(run.exception, (SystemExit, OSError, ValueError)) and run.exit_code != 0 and not run.stdout
    return " ".join(f"{run.stderr} {run.exception}".replace("│", " ").split())


def write_table(path, rows, header=("wav_file_name", "text")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def read_scores(path) -> list[tuple[str, float]]:
    with path.open(newline="", encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            return [(row["wav_file_name"], row["pred_score"]) for row in map(json.loads, file)]
        return [(row["wav_file_name"], float(row["pred_score"])) for row in csv.DictReader(file)]


def journal_of(part) -> list[dict]:
    """The rows that an interrupted job had scored."""
    return [row for line in part.read_text().splitlines()[1:] for row in json.loads(line)["rows"]]


# --- Scorer --------------------------------------------------------------------------------------------------------------


def test_scores_do_not_depend_on_the_batch(scorer, wav_dir):
    audio, text = [wav_dir / name for name, _ in PAIRS], [caption for _, caption in PAIRS]
    alone = np.concatenate([scorer.score([sound], [caption]) for sound, caption in zip(audio, text, strict=True)])
    for batch_size in (1, 2, 5, 64):
        np.testing.assert_allclose(scorer.score(audio, text, batch_size), alone, atol=1e-5)
    np.testing.assert_allclose(scorer.score(audio[::-1], text[::-1]), alone[::-1], atol=1e-5)
    assert alone[0] == pytest.approx(alone[4], abs=1e-4)  # the same sound as wav and as flac
    assert alone.std() > 1e-3


def test_a_clip_with_several_captions_is_encoded_once(scorer, wav_dir):
    encoded = []
    hook = scorer.model.model.audio_tower.register_forward_hook(lambda module, args, output: encoded.append(len(args[0])))
    scorer.score([wav_dir / "rain.wav"] * 8, [f"Caption {number}" for number in range(8)])
    hook.remove()
    assert encoded == [1]


def test_long_clips_are_averaged_by_duration(scorer):
    long = make_sound("siren", 24.0)
    parts = scorer.score([long[:160000], long[160000:320000], long[320000:]], ["A siren"] * 3)
    (mean,) = scorer.score([long], ["A siren"])
    assert mean == pytest.approx(float(np.average(parts, weights=[10, 10, 4])), abs=1e-5)
    (first,) = scorer.score([long], ["A siren"], window="first")
    assert first == pytest.approx(float(parts[0]), abs=1e-6)


@pytest.mark.parametrize("seconds", [0.1, 0.175, 9.9999, 10.0, 10.0001, 60.0])
def test_every_length_scores(scorer, seconds):
    assert np.isfinite(scorer.score([make_sound("rain", seconds)], ["Rain"])).all()


def test_one_bad_clip_fails_alone(scorer, wav_dir):
    pairs = [(wav_dir / "rain.wav", "Rain"), (wav_dir / "missing.wav", "Rain"), (wav_dir / "long.wav", "Rain")]
    no_captions = [(wav_dir / "rain.wav", caption) for caption in (None, " ", "a\ud800b")]
    results = list(scorer.score_each(pairs + no_captions, batch_size=2))
    assert [result.error is None for result in results] == [True, False, True, False, False, False]
    assert "the caption must be a text" in str(results[3].error)
    assert "missing.wav" in str(results[1].error)
    expected = scorer.score([pairs[0][0], pairs[2][0]], ["Rain", "Rain"])
    np.testing.assert_allclose([results[0].score, results[2].score], expected, atol=1e-5)
    assert len(results[2].windows) == 4
    with pytest.raises(FileNotFoundError, match=r"missing\.wav"):
        scorer.score([pair[0] for pair in pairs], ["Rain"] * 3)


def test_wrong_arguments_are_refused(scorer, tiny_folder, tmp_path):
    with pytest.raises(ValueError, match="2 sounds and 1 captions"):
        scorer.score([make_sound("rain", 1.0)] * 2, ["Rain"])
    with pytest.raises(ValueError, match="'mean' or 'first'"):
        scorer.score([make_sound("rain", 1.0)], ["Rain"], window="max")
    with pytest.raises(ValueError, match="batch_size"):
        scorer.score([make_sound("rain", 1.0)], ["Rain"], batch_size=0)
    with pytest.raises(ValueError, match="dtype must be one of"):
        Scorer.from_pretrained(tiny_folder, dtype="float8")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        Scorer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="of type 'bert', not an xacle scorer"):
        Scorer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is converted with `xacle convert tmu`"):
        Scorer.from_pretrained(GOLDEN / "tmu")
    with pytest.raises(FileNotFoundError, match="no model folder at 'nowhere'"):
        Scorer.from_pretrained("nowhere")
    with pytest.raises(ValueError, match="the device 'cuda:99' cannot be used here"):
        Scorer.from_pretrained(tiny_folder, device="cuda:99")
    with pytest.raises(ValueError, match="got 1 sounds and 'Rain'"):
        scorer.score([make_sound("rain", 1.0)], "Rain")


def test_damaged_and_incomplete_model_folders_are_explained(tiny_folder, tmp_path):
    broken = shutil.copytree(tiny_folder, tmp_path / "broken")
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=r"weights in .*broken' are damaged"):
        Scorer.from_pretrained(broken, device="cpu")
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json' is damaged"):
        Scorer.from_pretrained(broken, device="cpu")
    (broken / "processor_config.json").unlink()
    with pytest.raises(ValueError, match=r"has no processor_config\.json"):
        Scorer.from_pretrained(broken, device="cpu")


def test_a_captioner_is_not_scored_with(make_scorer, processor, tmp_path, transformers_log):
    make_scorer(model_class=XacleForConditionalGeneration).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks score_head\.out_proj\.bias, .*would be random"):
        Scorer.from_pretrained(tmp_path, device="cpu")
    assert not transformers_log.records  # no report of transformers before the error


def test_bfloat16_stays_close(tiny_folder, scorer, wav_dir):
    half = Scorer.from_pretrained(tiny_folder, device="cpu", dtype="bfloat16")
    audio, text = [wav_dir / "rain.wav", wav_dir / "siren.ogg"], ["Rain", "Siren"]
    np.testing.assert_allclose(half.score(audio, text), scorer.score(audio, text), atol=0.1)


def test_scores_are_written_to_the_last_digit():
    for score in np.float32([6.25, 1 / 3, 1e-7, -0.0, 9.999999, 123456.7]):
        assert np.float32(shortest(score)) == score
    assert shortest(np.float32(6.4)) == "6.4"


FORMATS = [("wav", "PCM_U8"), ("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "PCM_32"), ("wav", "FLOAT"), ("flac", "PCM_16")]
FORMATS += [("flac", "PCM_24"), ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")]


def test_every_format_rate_and_channel_count_scores_alike(scorer, tmp_path):
    """One sound in 8 to 48 kHz, 1 to 6 channels and every format: the scores differ by the coding loss and nothing else."""
    paths, held, exact, upsampled = [], [], [], []
    for suffix, subtype in FORMATS:
        for rate in (8000, 16000, 22050, 44100, 48000):
            for channels in (1, 2, 6):
                if suffix == "mp3" and channels > 2:
                    continue
                wave = soxr.resample(make_sound("rain", 2.0), 16000, rate)
                path = tmp_path / f"{subtype}_{rate}_{channels}.{suffix}"
                sf.write(path, np.tile(0.5 * wave[:, None], (1, channels)), rate, subtype=subtype)
                samples = sf.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)  # what coding left of it
                paths.append(path)
                held.append({"array": samples, "sampling_rate": rate})
                lossless = subtype in ("PCM_24", "PCM_32", "FLOAT")
                exact.append(lossless and rate == 16000)
                upsampled.append(lossless and rate > 16000)
    scores = scorer.score(paths, ["Rain"] * len(paths))
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores, scorer.score(held, ["Rain"] * len(paths)), atol=1e-5)
    reference = scores[exact][0]
    others = scorer.score([make_sound(name) for name in ("siren", "clock", "engine")], ["Rain"] * 3)
    spread = np.abs(others - reference).min()
    assert np.abs(scores[exact] - reference).max() < 1e-4
    assert np.abs(scores[upsampled] - reference).max() < 0.05 * spread


# --- The command ---------------------------------------------------------------------------------------------------------


def test_one_pair(tiny_folder, scorer, wav_dir):
    result = command("score", "--model", tiny_folder, "--audio", wav_dir / "rain.wav", "--text", "Rain falls")
    assert result.returncode == 0, result.stderr
    (expected,) = scorer.score([wav_dir / "rain.wav"], ["Rain falls"])
    assert float(result.stdout) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table(tiny_folder, scorer, wav_dir, tmp_path, suffix):
    table, output = tmp_path / f"pairs{suffix}", tmp_path / f"scores{suffix}"
    if suffix == ".csv":
        write_table(table, PAIRS)
    else:
        table.write_text("".join(json.dumps({"wav_file_name": name, "text": text}) + "\n" for name, text in PAIRS))
    result = command(
        *("score", "--model", tiny_folder, "--input", table, "--audio-dir", wav_dir, "--output", output, "--batch-size", 3)
    )
    assert result.returncode == 0, result.stderr
    assert "6/6" in result.stderr  # the progress bar
    rows = read_scores(output)
    assert [name for name, _ in rows] == [name for name, _ in PAIRS]
    expected = scorer.score([wav_dir / name for name, _ in PAIRS], [text for _, text in PAIRS])
    np.testing.assert_allclose([score for _, score in rows], expected, atol=1e-5)
    if suffix == ".csv":
        assert output.read_text().startswith("wav_file_name,text,pred_score")  # a clip has several captions here


def test_the_readmes_column_name_and_files_beside_the_table(tiny_folder, wav_dir):
    table = write_table(wav_dir / "pairs.csv", [("Rain falls", "rain.wav")], header=("text", "wave_file_name"))
    result = command("score", "--model", tiny_folder, "--input", table, "--output", wav_dir / "scores.csv")
    assert result.returncode == 0, result.stderr
    assert [name for name, _ in read_scores(wav_dir / "scores.csv")] == ["rain.wav"]


@pytest.mark.parametrize("file_column", FILE_COLUMNS)
@pytest.mark.parametrize("text_column", TEXT_COLUMNS)
def test_every_name_of_a_column_is_read(wav_dir, tmp_path, file_column, text_column):
    table = write_table(tmp_path / "pairs.csv", [("rain.wav", "Rain"), ("siren.ogg", "")], header=(file_column, text_column))
    (pair,), (problem,) = read_pairs(table, wav_dir)
    assert (pair.line, pair.wav_file_name, pair.text, pair.audio) == (2, "rain.wav", "Rain", wav_dir / "rain.wav")
    assert problem.reason == f"no caption for 'siren.ogg'; fill in the {text_column} column"


@pytest.fixture(scope="module")
def bad_table(tmp_path_factory, wav_dir):
    """A table with one good row first and last, and every fault between them."""
    folder = tmp_path_factory.mktemp("bad")
    for name in ("rain.wav",):
        (folder / name).write_bytes((wav_dir / name).read_bytes())
    (folder / "empty.wav").touch()
    (folder / "corrupt.wav").write_bytes(b"RIFF this is no sound")
    sf.write(folder / "silent.wav", np.zeros(0, dtype=np.float32), 16000)
    sf.write(folder / "nan.wav", np.full(16000, np.nan, dtype=np.float32), 16000, subtype="FLOAT")
    names = ["rain.wav", "missing.wav", "empty.wav", "corrupt.wav", "silent.wav", "nan.wav"]
    rows = [(name, "Rain") for name in names] + [("rain.wav", " "), ("", "Rain"), ("rain.wav", "Rain, loud")]
    return write_table(folder / "pairs.csv", rows)


def test_everything_wrong_with_a_table_is_reported_at_once(tiny_folder, bad_table, tmp_path):
    result = command("score", "--model", tiny_folder, "--input", bad_table, "--output", tmp_path / "scores.csv")
    assert result.returncode == 1
    assert "rows that cannot be scored: 6" in result.stderr
    for line, words in [(3, "missing.wav"), (4, "empty.wav"), (5, "corrupt.wav"), (6, "silent.wav"), (8, "no caption")]:
        assert f"line {line}: " in result.stderr
        assert words in result.stderr.split(f"line {line}: ")[1].splitlines()[0]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "scores.csv").exists()


def test_a_wrong_audio_folder_is_asked_about(bad_table, tmp_path):
    options = ("--input", write_table(tmp_path / "pairs.csv", PAIRS), "--output", tmp_path / "scores.csv")
    for on_error in ("stop", "skip"):
        said = refusal("score", "--model", "none", *options, "--audio-dir", "nosuch", "--on-error", on_error)
        assert "is the audio folder right? It is 'nosuch' (--audio-dir)" in said
    assert "is the audio folder right" not in refusal("score", "--model", "none", "--input", bad_table, *options[2:])


def test_skipping_scores_the_good_rows_and_lists_the_others(tiny_folder, bad_table, tmp_path):
    output = tmp_path / "scores.csv"
    result = command(*("score", "--model", tiny_folder, "--input", bad_table, "--output", output, "--on-error", "skip"))
    assert result.returncode == 0, result.stderr
    assert [name for name, _ in read_scores(output)] == ["rain.wav", "rain.wav"]
    with (tmp_path / "scores.csv.rejected.csv").open(newline="") as file:
        rejected = list(csv.DictReader(file))
    assert [int(row["line"]) for row in rejected] == [3, 4, 5, 6, 7, 8, 9]
    assert "NaN" in rejected[4]["reason"]
    assert (rejected[0]["wav_file_name"], rejected[0]["text"]) == ("missing.wav", "Rain")  # ready to be fixed
    _, again = read_pairs(tmp_path / "scores.csv.rejected.csv", bad_table.parent)
    write_problems(tmp_path / "again.csv", again)  # of rows that were rejected before
    with (tmp_path / "again.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["line", "reason", "wav_file_name", "text"]
    assert "2 pairs scored" in result.stderr
    assert "7 rows skipped" in result.stderr


def test_a_fault_inside_the_samples_costs_no_other_row(tiny_folder, wav_dir, tmp_path):
    sf.write(tmp_path / "nan.wav", np.full(16000, np.nan, dtype=np.float32), 16000, subtype="FLOAT")
    flac = (wav_dir / "rain.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(flac[: len(flac) // 2])
    good = str(wav_dir / "rain.wav")
    table = write_table(tmp_path / "pairs.csv", [(name, "Rain") for name in (good, "nan.wav", good, "cut.flac", good)])
    result = command("score", "--model", tiny_folder, "--input", table, "--output", tmp_path / "scores.csv")
    assert result.returncode == 1
    assert "line 3: " in result.stderr and "line 5: " in result.stderr
    assert "the other 3 rows are in" in result.stderr
    assert len(read_scores(tmp_path / "scores.csv")) == 3
    assert not (tmp_path / "scores.csv.part").exists()
    table = write_table(tmp_path / "pairs.csv", [(good, "Rain")])
    assert command("score", "--model", tiny_folder, "--input", table, "--output", tmp_path / "scores.csv").returncode == 0
    assert not (tmp_path / "scores.csv.rejected.csv").exists()  # an earlier run's
    write_table(tmp_path / "pairs.csv", [("nan.wav", "Rain")])
    result = command(
        *("score", "--model", tiny_folder, "--input", table, "--output", tmp_path / "scores.csv", "--on-error", "skip")
    )
    assert result.returncode == 1


def test_an_interrupted_table_keeps_what_is_done(tiny_folder, wav_dir, tmp_path):
    table = write_table(tmp_path / "pairs.csv", [("rain.wav", f"Rain number {number}") for number in range(50_000)])
    output = tmp_path / "scores.csv"
    options = ["score", "--model", tiny_folder, "--input", table, "--audio-dir", wav_dir, "--output", output]
    # A shell's background jobs ignore Ctrl-C, and so would what they start.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command_line = [*COMMAND[:-1], heed + COMMAND[-1], *map(str, options)]
    with subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True, env=PLAIN) as process:
        part = tmp_path / "scores.csv.part"
        deadline = time.monotonic() + 120
        while not (part.exists() and part.stat().st_size > 1000) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "rows scored so far are in" in stderr and "the same command continues from there" in stderr
    assert "Traceback" not in stderr
    assert not output.exists()
    assert len(journal_of(part)) > 10


def test_a_url_in_a_table_is_fetched(tiny_folder, tmp_path):
    missing = "HTTP://127.0.0.1:9/sound.wav"  # nothing listens there
    table = write_table(tmp_path / "pairs.csv", [(missing, "Rain")])
    result = command("score", "--model", tiny_folder, "--input", table, "--output", tmp_path / "scores.csv")
    assert result.returncode == 1
    assert f"cannot fetch {missing}" in result.stderr


def test_outputs_that_would_do_harm_are_refused_before_any_work(wav_dir, tmp_path):
    table = write_table(tmp_path / "pairs.csv", [("rain.wav", "Rain")])
    content = table.read_text()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "x").mkdir()
    for output, message in [
        (tmp_path / "x/../pairs.csv", "would overwrite the input"),
        (tmp_path / "folder.csv", "is a folder"),
        (tmp_path / "nowhere/scores.csv", "its folder does not exist"),
    ]:
        assert message in refusal("score", "--model", "none", "--input", table, "--audio-dir", wav_dir, "--output", output)
    assert table.read_text() == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("wav_file_name,words\nrain.wav,Rain\n", "needs the column text or caption"),
        ("wav_file_name;text\nrain.wav;Rain\n", "separated by semicolons; save it with commas"),
        ('wav_file_name,text\nrain.wav,"Rain\nmore,more\n', "is a quote opened and never closed"),
        (b"wav_file_name,text\nrain.wav,caf\xe9\n", "save it as UTF-8"),
        ('{"wav_file_name": "rain.wav"\n', "line 1: "),
        ('["rain.wav", "Rain"]\n', "line 1: expected an object"),
        ('{"wav_file_name": "rain.wav", "text": "a\\ud800b"}\n', "line 1: wav_file_name or text is no valid Unicode"),
        ('{"wav_file_name": "rain.wav", "text": 3}\n', "must be strings, got 'rain.wav' and 3"),
        ("wav_file_name,text\n", "has no rows"),
        ("", "has no rows"),
        ("wav_file_name,text\nrain.wav,Rain, loud\n", "line 2: 3 fields where the header has 2"),
    ],
)
def test_tables_that_are_none(wav_dir, tmp_path, content, message):
    table = tmp_path / ("pairs.jsonl" if content[:1] in ("{", "[") else "pairs.csv")
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    options = ("--input", table, "--audio-dir", wav_dir, "--output", tmp_path / "scores.csv")
    assert message in refusal("score", "--model", "none", *options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--audio", "a.wav"], "either --audio and --text"),
        (["--audio", "a.wav", "--text", "a", "--input", "b.csv", "--output", "c.csv"], "either --audio and --text"),
        (["--audio", "a.wav", "--text", ""], "the caption is empty"),
        (["--audio", "missing.wav", "--text", "a"], "no audio file at 'missing.wav'"),
        (["--audio", ".", "--text", "a"], "'.' is a folder, not an audio file"),
        (["--audio", "a", "--text", "a", "--with-text", "--shard", "0"], "only tables (--input) have --shard, --with-text"),
        (["--input", "missing.csv", "--output", "c.csv"], "no table at 'missing.csv'"),
        (["--input", ".", "--output", "c.csv"], "'.' is a folder, not a table"),
        (["--input", "missing.csv", "--output", "c.txt"], "must end in .csv or .jsonl or .parquet"),
    ],
)
def test_wrong_calls_are_explained(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refusal("score", "--model", "none", *arguments)


def test_what_the_hub_was_asked_for_is_named(wav_dir, tmp_path):
    pair = ("--audio", wav_dir / "rain.wav", "--text", "Rain")
    table = ("--input", write_table(tmp_path / "pairs.csv", PAIRS), "--audio-dir", wav_dir, "--output", tmp_path / "out.csv")
    new = tmp_path / "new"
    for arguments, named in [
        (("score", "--model", "me/x", *pair), "'me/x' (--model)"),
        (("score", "--model", "me/x", *table), "'me/x' (--model)"),
        (("explain", "--model", "me/x", *pair), "'me/x' (--model)"),
        (("rank", "--model", "me/x", "--text", "Rain", wav_dir), "'me/x' (--model)"),
        (("caption", "--model", "me/x", *pair[:2]), "'me/x' (--model)"),
        (("pseudo-label", "--teacher", "me/x", *table, "--feature-cache", new), "'me/x' (--teacher)"),
        (("convert", "tmu", GOLDEN / "tmu", new, "--llm", "nosuch"), "'nosuch' (--llm)"),
        (("convert", "tmu", "me/x", new), "'me/x' (SOURCE)"),
    ]:
        assert f"{named} is no folder here, and the Hub cannot be reached" in refusal(*arguments)


def test_convert_and_score(released_folder, tmp_path, wav_dir):
    result = command("convert", "tmu", GOLDEN / "tmu", tmp_path / "model")
    assert result.returncode == 0 and "model shards" not in result.stderr, result.stderr
    result = command("score", "--model", tmp_path / "model", "--audio", wav_dir / "rain.wav", "--text", "Rain")
    (expected,) = Scorer.from_pretrained(released_folder, device="cpu").score([wav_dir / "rain.wav"], ["Rain"])
    assert float(result.stdout) == pytest.approx(float(expected), abs=1e-5)
    result = command("convert", "beats", GOLDEN / "beats_tiny_a.pt", tmp_path / "beats")
    assert result.returncode == 0, result.stderr
    result = command("convert", "beats", tmp_path / "nothing.pt", tmp_path / "other")
    assert result.returncode == 1
    assert "no checkpoint at" in result.stderr


def test_help_is_quick_and_complete():
    for arguments, words in [((), "score"), (("score",), "--batch-size"), (("convert",), "tmu")]:
        result = command(*arguments, "--help")
        assert result.returncode == 0
        assert words in result.stdout
    assert command("--version").stdout.strip()[0].isdigit()
    training = command("train", "ratings", "--help").stdout
    assert training.index("--train-file STR") < training.index("--learning-rate FLOAT") and "{adamw_torch" not in training
    typed = {"_XACLE_COMPLETE": "complete_bash", "COMP_WORDS": "xacle train r", "COMP_CWORD": "2"}
    completion = subprocess.run(COMMAND, capture_output=True, text=True, env={**PLAIN, **typed})
    assert completion.stdout.split() == ["ratings"]
    imports = "import sys, xacle.cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", imports], capture_output=True, text=True).stdout.strip() == "False"
