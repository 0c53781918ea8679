"""Descriptions that are nearly right: one thing is wrong, or details are left out."""

from dataclasses import replace

import numpy as np

from xacle.soundscapes.agreement import agreement
from xacle.soundscapes.events import AXIS_OF, KINDS, OPPOSITE, Event, random_event
from xacle.soundscapes.random_numbers import pick
from xacle.soundscapes.scenes import Scene

CLEARLY_WRONG = 8.5  # agreement: one attribute of two events is the opposite of what is heard


def understate(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same description without some details: each count and attribute is left out with a probability of 20 %."""
    events = []
    for event in scene.events:
        attributes = tuple(attribute for attribute in event.attributes if rng.random() > 0.2)
        events.append(Event(event.kind, event.count if rng.random() > 0.2 else 0, attributes))
    return Scene(tuple(events), scene.relation)


def near_miss(scene: Scene, rng: np.random.Generator) -> Scene:
    """
    A description with one thing wrong: an event (swapped, added, left out), a detail, the order or the relation.

    Some have the right words in the wrong places: the order is reversed, or the events' details are exchanged. To find that
    out, sound and caption must be compared event by event.
    """
    number = int(rng.random() * len(scene.events))
    event, other = scene.events[number], random_event(rng, pick(rng, [kind for kind in KINDS if kind not in scene.kinds]))

    def changed(new: Event) -> Scene:
        return replace(scene, events=(*scene.events[:number], new, *scene.events[number + 1 :]))

    misses = []  # each as often as it is likely
    if event.attributes:
        wrong = pick(rng, event.attributes)
        attributes = tuple(OPPOSITE[attribute] if attribute == wrong else attribute for attribute in event.attributes)
        misses.append(changed(replace(event, attributes=attributes)))
    if event.count and KINDS[event.kind].most > 1:
        counts = [count for count in range(1, KINDS[event.kind].most + 1) if 1 <= abs(count - event.count) <= 2]
        misses.append(changed(replace(event, count=pick(rng, counts))))
    if scene.relation == "alone":
        misses.append(Scene((event, other), pick(rng, ("followed by", "while"))))  # swapped, nothing would be right
    else:
        relation = "while" if scene.relation == "followed by" else "followed by"
        misses += [changed(other), changed(other), Scene((event,)), replace(scene, relation=relation)]
        exchanged = exchange_details(scene)
        if agreement(scene, exchanged) <= CLEARLY_WRONG:
            misses += [exchanged] * 2
    if scene.relation == "followed by":
        misses += [replace(scene, events=scene.events[::-1])] * 2
    return pick(rng, misses)


def exchange_details(scene: Scene) -> Scene:
    """The two events with each other's count and attributes, as far as both kinds can have them."""

    def take(event: Event, other: Event) -> Event:
        kind, other_kind = KINDS[event.kind], KINDS[other.kind]
        attributes = [attribute for attribute in other.attributes if AXIS_OF[attribute] in kind.axes]
        attributes += [attribute for attribute in event.attributes if AXIS_OF[attribute] not in other_kind.axes]
        if "loudness" in map(AXIS_OF.get, attributes):  # as in `random_event`
            attributes = [attribute for attribute in attributes if AXIS_OF[attribute] != "distance"]
        count = min(other.count, kind.most) if kind.most and other_kind.most else event.count
        if count == 1:
            attributes = [attribute for attribute in attributes if AXIS_OF[attribute] != "speed"]
        return Event(event.kind, count, tuple(attributes))

    first, second = scene.events
    return replace(scene, events=(take(first, second), take(second, first)))
