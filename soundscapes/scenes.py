"""Generated soundscapes: ten-second scenes of one or two sound events, from a seed.

Both the sound of a [`Scene`] (render.py) and its caption (captions.py) are made from it. How well another description fits is
in agreement.py; wrong descriptions are in near_misses.py.
"""

from dataclasses import dataclass

import numpy as np

from xacle.soundscapes.events import AXIS_OF, Event, random_event

RELATIONS = ("alone", "followed by", "while")


@dataclass(frozen=True)
class Scene:
    """One event `"alone"`, or two of different kinds: the first `"followed by"` the second, or sounding `"while"` it does."""

    events: tuple[Event, ...]
    relation: str = "alone"

    def __post_init__(self):
        if self.relation not in RELATIONS or len(self.events) != (1 if self.relation == "alone" else 2):
            raise ValueError(f"'alone' takes one event, 'followed by' and 'while' two, got {self.relation!r}, {self.events}")
        if len({event.kind for event in self.events}) < len(self.events):
            raise ValueError(f"the two events of a scene must be of different kinds, got {self.events}")

    @property
    def kinds(self) -> set[str]:
        return {event.kind for event in self.events}


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene of one event (15 %), two in order (65 %), or two at once (20 %): not both counted, similar in level."""
    draw = rng.random()
    first, relation = random_event(rng), "alone" if draw < 0.15 else "followed by" if draw < 0.8 else "while"
    if relation == "alone":
        return Scene((first,))
    while True:
        second = random_event(rng)
        levels = sum(AXIS_OF[attribute] in ("loudness", "distance") for attribute in first.attributes + second.attributes)
        unlike = second.kind != first.kind
        if unlike and (relation == "followed by" or (levels <= 1 and not (first.count and second.count))):
            return Scene((first, second), relation)
