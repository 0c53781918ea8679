"""`xacle score --input`: a table of pairs in, a table of scores out."""

from pathlib import Path

from tqdm import tqdm

from xacle.scoring.scorer import Scorer
from xacle.scoring.tables import Problem, TableError, read_pairs, write_problems, write_scores


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
) -> tuple[int, tuple[Path, int] | None]:
    """Score every row of `table` and write `output`, in the table's order.

    Args:
        on_error: `"stop"` raises [`TableError`] before any scoring if a row cannot be scored; `"skip"` writes such rows, with
            line numbers and reasons, to `<output>.rejected.csv` and scores the others.
        The other arguments are those of [`Scorer`] and [`read_pairs`].

    Returns:
        How many pairs were scored; where the rejected rows are and how many, or `None` if there are none.
    """
    if output.suffix.lower() not in (".csv", ".jsonl"):
        raise ValueError(f"--output '{output}' must end in .csv or .jsonl")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder '{output.absolute().parent}' to write {output.name} in")
    pairs, problems = read_pairs(table, audio_dir)
    if problems and on_error == "stop":
        raise TableError(table, problems)

    scores = []
    if pairs:
        scorer = Scorer.from_pretrained(model, device, dtype)
        results = scorer.score_each(((pair.path, pair.text) for pair in pairs), batch_size, window)
        for pair, result in zip(pairs, tqdm(results, total=len(pairs), unit="pair"), strict=True):
            if result.error is None:
                scores.append((pair.wav_file_name, result.score))
                continue
            problem = Problem(pair.line, pair.wav_file_name, pair.text, str(result.error))
            if on_error == "stop":  # a fault the header did not show
                raise TableError(table, [problem]) from result.error
            problems.append(problem)

    write_scores(output, scores)
    if not problems:
        return len(scores), None
    rejected = output.with_name(output.name + ".rejected.csv")
    write_problems(rejected, sorted(problems, key=lambda problem: problem.line))
    return len(scores), (rejected, len(problems))
