"""Scoring on a cluster, by Ray Data: it reads and writes Parquet in object storage, shares out the batches, and tries them
again where an actor or a machine dies.

    python -m xacle.scoring.ray_data --input 's3://bucket/pairs/*.parquet' --output s3://bucket/scores --model DIR

In a pipeline of your own: `rows.map_batches(AlignmentScores, fn_constructor_kwargs={"model": DIR}, ...)`. Needs
`pip install xacle[ray]`.
"""

import argparse
import glob
from pathlib import Path

import numpy as np

from xacle.core.columns import CUT_COLUMNS, FILE_COLUMNS, PREDICTION_COLUMNS, TEXT_COLUMNS, find_column
from xacle.core.tables import cut_of, locate_audio
from xacle.scoring.scorer import Clip, Pair, load_scorer

SCORE, ERROR = PREDICTION_COLUMNS[0], "error"


class AlignmentScores:
    """
    Adds the columns `pred_score` (NaN where there is none) and `error` (why; else empty) to batches of rows.

    A batch has a column of captions, and one of sounds: file names or URLs, bytes, or the dicts that `datasets` writes to
    Parquet; `start` and `end` (seconds) are read where they are. Columns of bytes and dicts are dropped from the result. Equal
    sounds of a batch are encoded once; let rows of a sound stand together.

    Args:
        model, device, dtype: See [`load_scorer`]. Each actor loads the model once.
        audio_dir: Where files are, seen from every machine.
        batch_size, window, workers: See [`Scorer.score`].
    """

    def __init__(
        self,
        model: str | Path,
        audio_dir: str | Path = ".",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int | str = "auto",
        window: str = "mean",
        workers: int = 0,
    ):
        self.scorer = load_scorer(model, device, dtype)
        self.audio_dir = Path(audio_dir)
        self.settings = {"batch_size": batch_size, "window": window, "workers": workers}

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raises `ValueError` if the batch has no column of sounds or of captions. Single bad rows raise nothing."""
        file, text = find_column(batch, FILE_COLUMNS), find_column(batch, TEXT_COLUMNS)
        if file is None or text is None:
            raise ValueError(f"rows need the columns {FILE_COLUMNS[0]} and {TEXT_COLUMNS[0]}; they have {', '.join(batch)}")
        cuts = [batch.get(column, [None] * len(batch[text])) for column in CUT_COLUMNS]
        clips: dict[object, Clip] = {}
        for number, (sound, caption, *cut) in enumerate(zip(batch[file], batch[text], *cuts, strict=True)):
            cut = [None if seconds is None or seconds != seconds else float(seconds) for seconds in cut]  # NaN: none
            clip = clips.setdefault((_key(sound), *cut), Clip(cut_of(self._located(sound), *cut), []))
            clip.pairs.append(Pair(number, sound, caption))
        scores, errors = np.full(len(batch[text]), np.nan, dtype=np.float32), np.full(len(batch[text]), "", dtype=object)
        for result in self.scorer.results(clips.values(), **self.settings):
            if result.error is None:
                scores[result.pair.line] = result.score
            else:
                errors[result.pair.line] = str(result.error)
        stored = any(isinstance(sound, (bytes, dict)) for sound in batch[file])
        kept = {name: values for name, values in batch.items() if not (stored and name == file)}
        return {**kept, SCORE: scores, ERROR: errors}

    def _located(self, sound):
        return locate_audio(sound, self.audio_dir) if isinstance(sound, str) else sound


def _key(sound):
    """What makes sounds of a batch the same."""
    return (sound.get("bytes") or sound.get("path")) if isinstance(sound, dict) else sound


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="Parquet: a file, folder or glob, or an address in object storage")
    parser.add_argument("--output", required=True, help="folder for the Parquet files of scores")
    parser.add_argument("--model", required=True, help="folder or Hub id of a scorer or any CLAP, on every machine")
    parser.add_argument("--audio-dir", default=".", help="folder of the files that the rows name, on every machine")
    parser.add_argument("--actors", type=int, default=1, help="copies of the model")
    parser.add_argument("--gpus", type=float, default=0, help="of each actor")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=256, help="rows in a batch")
    parser.add_argument("--workers", type=int, default=0, help="processes of each actor that decode files")
    options = parser.parse_args(argv)
    import ray

    matching = sorted(glob.glob(options.input)) or options.input  # addresses and folders are Ray's to read
    rows = ray.data.read_parquet(matching)
    device = "cuda" if options.gpus else "cpu"
    settings = {"model": options.model, "audio_dir": options.audio_dir, "device": device, "dtype": options.dtype}
    scored = rows.map_batches(
        AlignmentScores,
        fn_constructor_kwargs={**settings, "workers": options.workers},
        batch_size=options.rows,
        compute=ray.data.ActorPoolStrategy(size=options.actors),
        num_gpus=options.gpus or None,
    )
    scored.write_parquet(options.output)


if __name__ == "__main__":
    main()
