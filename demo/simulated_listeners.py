"""Simulated listeners: they turn how well a caption truly fits (0-10) into ratings, each with a bias, a spread and noise."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from xacle.soundscapes.random_numbers import generator, pick


class ListenerRating(NamedTuple):
    listener_id: str
    score: int  # 0-10


@dataclass(frozen=True)
class Listener:
    """Rates round(5 + bias + spread x (agreement - 5) + noise), clipped to 0-10."""

    listener_id: str
    bias: float
    spread: float
    noise: float

    def rate(self, agreement: float, rng: np.random.Generator) -> int:
        rating = 5 + self.bias + self.spread * (agreement - 5) + self.noise * rng.standard_normal()
        return int(np.clip(np.round(rating), 0, 10))


def make_panel(name: str, size: int, seed: int) -> list[Listener]:
    """
    Listeners with a bias of 0 +- 0.7 points, a spread of 0.75-1.15 and a noise of 0.8-2.2 points.

    Args:
        name: A letter that their ids, of 8 characters, begin with: no listener is in two panels of different names.
    """
    rng = generator(seed, 0, ord(name))
    codes = {}  # in the order drawn, each once
    while len(codes) < size:
        codes["".join(pick(rng, "abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(7))] = None
    return [
        Listener(name + code, 0.7 * rng.standard_normal(), rng.uniform(0.75, 1.15), rng.uniform(0.8, 2.2)) for code in codes
    ]


def rate_pair(agreement: float, panel: list[Listener], ratings: int, rng: np.random.Generator) -> list[ListenerRating]:
    """The ratings of so many different listeners, drawn from a panel."""
    chosen = np.argsort(rng.random(len(panel)))[:ratings]
    return [ListenerRating(panel[index].listener_id, panel[index].rate(agreement, rng)) for index in chosen]
