"""The kinds of sound events, their attributes, and events drawn at random."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from xacle.soundscapes import sounds
from xacle.soundscapes.random_numbers import pick

AXES = {"speed": ("slow", "fast"), "loudness": ("soft", "loud"), "pitch": ("low", "high"), "distance": ("far", "near")}
AXIS_OF = {attribute: axis for axis, pair in AXES.items() for attribute in pair}
OPPOSITE = {attribute: pair[1 - i] for pair in AXES.values() for i, attribute in enumerate(pair)}


@dataclass(frozen=True)
class Kind:
    """
    A kind of sound event.

    Args:
        sound: A function of sounds.py.
        family: Kinds of one family are more easily confused.
        axes: The axes of its attributes.
        most: The largest count; 0 if it is not counted.
        period: Seconds from call to call; 0 for a continuous sound.
        jitter: How irregular the calls are, in periods.
    """

    sound: Callable
    family: str
    axes: tuple[str, ...]
    most: int = 0
    period: float = 0.0
    jitter: float = 0.04


KINDS = {
    "rain": Kind(sounds.rain, "weather", ("loudness",)),
    "wind": Kind(sounds.wind, "weather", ("loudness",)),
    "waves": Kind(sounds.waves, "weather", ("loudness", "distance")),
    "thunder": Kind(sounds.thunder, "weather", ("loudness", "distance"), 0, 3.0, 0.3),
    "engine": Kind(sounds.engine, "machine", ("loudness", "pitch", "distance")),
    "clock": Kind(sounds.tick, "machine", ("loudness", "speed"), 0, 0.5, 0.0),
    "siren": Kind(sounds.siren, "signal", ("pitch", "speed", "distance")),
    "bell": Kind(sounds.bell, "signal", ("loudness", "pitch", "distance"), 4, 0.9),
    "phone": Kind(sounds.phone, "signal", ("loudness", "pitch", "distance"), 3, 1.25, 0.0),
    "alarm": Kind(sounds.alarm, "signal", ("loudness", "pitch", "speed"), 5, 0.38, 0.0),
    "horn": Kind(sounds.horn, "signal", ("loudness", "pitch", "distance"), 4, 0.75),
    "dog": Kind(sounds.dog, "animal", ("loudness", "pitch", "distance"), 5, 0.5, 0.1),
    "cat": Kind(sounds.cat, "animal", ("loudness", "pitch"), 3, 1.15, 0.06),
    "bird": Kind(sounds.bird, "animal", ("loudness", "pitch", "distance"), 5, 0.42, 0.1),
    "owl": Kind(sounds.owl, "animal", ("loudness", "pitch", "distance"), 4, 0.85),
    "crickets": Kind(sounds.crickets, "animal", ("loudness", "speed")),
    "footsteps": Kind(sounds.footstep, "people", ("loudness", "speed", "distance"), 0, 0.58),
    "typing": Kind(sounds.key, "people", ("loudness", "speed"), 0, 0.17, 0.4),
    "knock": Kind(sounds.knock, "people", ("loudness", "speed"), 5, 0.4),
    "applause": Kind(sounds.applause, "people", ("loudness", "distance")),
    "drip": Kind(sounds.drip, "water", ("loudness", "pitch", "speed"), 4, 0.55, 0.06),
}


@dataclass(frozen=True)
class Event:
    """
    A sound event, in a scene or in a description.

    Args:
        kind: One of `KINDS`.
        count: How often it sounds ("a dog barks three times"); 0 if it is continuous, or if the number is not stated.
        attributes: At most one of each axis in `AXES`; none means usual, or not stated.
    """

    kind: str
    count: int = 0
    attributes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"no sound event called {self.kind!r}; there are {', '.join(KINDS)}")
        if not 0 <= self.count <= KINDS[self.kind].most:
            raise ValueError(f"count of {self.kind} must be 0 to {KINDS[self.kind].most}, got {self.count}")
        axes = [AXIS_OF.get(attribute) for attribute in self.attributes]
        if len(set(axes)) < len(axes) or not set(axes) <= set(KINDS[self.kind].axes):
            raise ValueError(f"{self.kind} has at most one attribute of each of {KINDS[self.kind].axes}, got {self.attributes}")

    def on_axis(self, axis: str) -> str | None:
        """The attribute on an axis, e.g. `"loud"` for `"loudness"`."""
        return next((attribute for attribute in self.attributes if AXIS_OF[attribute] == axis), None)


def random_event(rng: np.random.Generator, kind: str | None = None) -> Event:
    """An event of any kind or the given one; a countable kind has a count with 75 %, each axis an attribute with 33 %."""
    kind = pick(rng, tuple(KINDS)) if kind is None else kind
    most = KINDS[kind].most
    count = 1 + int(rng.random() * most) if most and rng.random() < 0.75 else 0
    attributes = [pick(rng, AXES[axis]) for axis in KINDS[kind].axes if rng.random() < 1 / 3]
    if "loudness" in map(AXIS_OF.get, attributes):  # loud and far at once would contradict each other
        attributes = [attribute for attribute in attributes if AXIS_OF[attribute] != "distance"]
    if count == 1:  # one stroke has no speed
        attributes = [attribute for attribute in attributes if AXIS_OF[attribute] != "speed"]
    return Event(kind, count, tuple(attributes))
