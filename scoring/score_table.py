"""`xacle score --input`: a table of pairs in, a table of scores out."""

from pathlib import Path

from tqdm import tqdm

from xacle.scoring.scorer import Scorer
from xacle.scoring.tables import Problem, ScoreWriter, TableError, check_suffix, read_pairs, write_problems


def score_table(
    model: str,
    table: Path,
    audio_dir: Path,
    output: Path,
    batch_size: int = 16,
    device: str | None = None,
    dtype: str = "float32",
    window: str = "mean",
    on_error: str = "stop",
) -> tuple[int, int]:
    """Score every row of `table` and write `output`, in the table's order; with the captions, if clips have several.

    Args:
        on_error: `"stop"` raises [`TableError`] before any scoring if the check of the table finds rows that cannot be scored.
            `"skip"` scores the others and writes those, with line numbers and reasons, to `<output>.rejected.csv`.
        The other arguments are those of [`Scorer`] and [`read_pairs`].

    Returns:
        How many rows were scored and how many rejected.

    Raises:
        TableError: see `on_error`. Also, once all other rows are scored and written, for faults that only decoding shows
            (with `"stop"`), and if no row could be scored.
        FileNotFoundError, ValueError: for a table, output or model that cannot be used.
    """
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error must be 'stop' or 'skip', got {on_error!r}")
    rejected = output.with_name(output.name + ".rejected.csv")
    check_suffix(output)
    if table.resolve() in (output.resolve(), rejected.resolve()):
        raise ValueError(f"'{output}' would overwrite the input; choose another --output")
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"'{output}' is a folder, or its folder does not exist; --output names a file to write")
    pairs, problems = read_pairs(table, audio_dir)
    if problems and on_error == "stop":
        raise TableError(table, problems, "nothing was scored; mend them, or pass --on-error skip to score the others")
    if not pairs:
        write_problems(rejected, problems)
        raise TableError(table, problems, f"no row can be scored; all are listed in {rejected}")

    captions = {pair.wav_file_name: pair.text for pair in pairs}  # one of several, if a clip has them
    with_text = any(captions[pair.wav_file_name] != pair.text for pair in pairs)
    writer = ScoreWriter(output, with_text)  # before the model is loaded: a place that cannot be written shows at once
    scored, late = 0, []
    try:
        scorer = Scorer.from_pretrained(model, device, dtype)
        results = scorer.score_each(((pair.audio, pair.text) for pair in pairs), batch_size, window)
        for pair, result in zip(pairs, tqdm(results, total=len(pairs), unit="pair"), strict=True):
            if result.error is None:
                writer.write(pair.wav_file_name, result.score, pair.text)
                scored += 1
            else:
                late.append(Problem(pair.line, str(result.error), pair.row))
    except BaseException as error:
        writer.close()
        if not scored:
            writer.part.unlink()
        if isinstance(error, KeyboardInterrupt) and scored:
            raise KeyboardInterrupt(f"interrupted; the {scored} rows scored so far are in {writer.part}") from error
        raise
    writer.finish()
    rejected.unlink(missing_ok=True)  # an earlier run's
    problems += late
    if problems:
        write_problems(rejected, problems)
    if late and (on_error == "stop" or not scored):
        raise TableError(table, problems, f"the other {scored} rows are in {output}, these also in {rejected}")
    return scored, len(problems)
