"""Descriptions that are nearly right: one thing is wrong, or details are left out."""

from dataclasses import replace

import numpy as np

from xacle.soundscapes.events import KINDS, OPPOSITE, Event, random_event
from xacle.soundscapes.random_numbers import pick
from xacle.soundscapes.scenes import Scene


def understate(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same description without some details: each count and attribute is left out with a probability of 20 %."""
    events = []
    for event in scene.events:
        attributes = tuple(attribute for attribute in event.attributes if rng.random() > 0.2)
        events.append(Event(event.kind, event.count if rng.random() > 0.2 else 0, attributes))
    return Scene(tuple(events), scene.relation)


def near_miss(scene: Scene, rng: np.random.Generator) -> Scene:
    """A description with one thing wrong: an event (swapped, added, left out), an attribute, a count, the order or relation."""
    number = int(rng.random() * len(scene.events))
    event, other = scene.events[number], random_event(rng, pick(rng, [kind for kind in KINDS if kind not in scene.kinds]))

    def changed(new: Event) -> Scene:
        return replace(scene, events=(*scene.events[:number], new, *scene.events[number + 1 :]))

    misses = []  # each as often as it is likely
    if event.attributes:
        wrong = pick(rng, event.attributes)
        attributes = tuple(OPPOSITE[attribute] if attribute == wrong else attribute for attribute in event.attributes)
        misses += [changed(replace(event, attributes=attributes))] * 2
    if event.count and KINDS[event.kind].most > 1:
        counts = [count for count in range(1, KINDS[event.kind].most + 1) if 1 <= abs(count - event.count) <= 2]
        misses += [changed(replace(event, count=pick(rng, counts)))] * 2
    if scene.relation == "alone":
        misses += [Scene((event, other), pick(rng, ("followed by", "while")))]  # swapped, nothing would be right
    else:
        misses += [changed(other)] * 3 + [
            Scene((event,)),
            replace(scene, relation="while" if scene.relation == "followed by" else "followed by"),
        ]
    if scene.relation == "followed by":
        misses += [replace(scene, events=scene.events[::-1])] * 3
    return pick(rng, misses)
