"""How long a million pseudo-label rows take, and how much memory: `python benchmarks/pseudo_labels.py`

Random embeddings stand for a teacher's, which are computed once a clip beforehand and are not part of this.
"""

import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from xacle.train.data import PairTable
from xacle.train.negatives import draw_negatives
from xacle.train.teacher.pseudo_labels import write_pseudo_labels

CLIPS, PAIRS, SIZE = 10_000, 256_500, 512  # 2.9 negatives a pair make 1,000,350 rows


def main() -> None:
    generator = np.random.default_rng(0)
    audio, text = (generator.standard_normal((CLIPS, SIZE), dtype=np.float32) for _ in range(2))
    audio, text = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True) for embeddings in (audio, text))
    clip, caption = (generator.integers(CLIPS, size=PAIRS, dtype=np.int32) for _ in range(2))
    captions = [f"a sound of kind {number}" for number in range(CLIPS)]
    names = [f"{number:05}.wav" for number in range(CLIPS)]
    table = PairTable("random", names, names, captions, clip, caption, np.arange(PAIRS, dtype=np.int32))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    negatives = draw_negatives(clip, caption, captions)
    drawn = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_pseudo_labels(Path(folder) / "labels.csv", table, negatives, audio, text)
    written = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = len(table) + len(negatives)
    print(f"{rows:,} rows: {drawn - start:.1f} s to draw, {written - drawn:.1f} s to write")
    print(f"peak memory {peak / 1e6:.2f} GB, {before / 1e6:.2f} GB before")


if __name__ == "__main__":
    main()
