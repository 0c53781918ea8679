"""Random numbers of the soundscapes: uniform doubles of PCG64, a stream numpy never changes, so a seed keeps its sounds."""

import numpy as np


def generator(*seed: int) -> np.random.Generator:
    """The random numbers of one seed, or of one sequence of numbers that are a seed together."""
    return np.random.Generator(np.random.PCG64(seed))


def pick(rng: np.random.Generator, choices):
    """One of a sequence, from one uniform number."""
    return choices[int(rng.random() * len(choices))]
