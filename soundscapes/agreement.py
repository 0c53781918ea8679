"""How well a description fits a generated scene, by a rule anyone can redo by hand; and near misses."""

from dataclasses import replace
from itertools import permutations

import numpy as np

from xacle.soundscapes.scenes import KINDS, OPPOSITE, Event, Scene, pick, random_event

RELATED_KIND = 0.25
COUNT_LOSS = (0.0, 0.2, 0.3, 0.4)  # off by 0, 1, 2, 3 or more
COUNT_INVENTED, COUNT_UNSTATED = 0.2, 0.05
ATTRIBUTE_OPPOSITE, ATTRIBUTE_INVENTED, ATTRIBUTE_UNSTATED = 0.3, 0.15, 0.05
LOWEST_CREDIT = 0.3
UNDESCRIBED_WEIGHT = 0.5
WRONG_ORDER, WRONG_RELATION = 0.6, 0.8


def agreement(scene: Scene, described: Scene) -> float:
    """
    How well a description fits a sound, 0-10, without any noise.

    Each described event gets a credit from the event heard that suits it best (one to one, the best assignment counts):

    | described event                                          | credit               |
    |----------------------------------------------------------|----------------------|
    | heard                                                    | 1, less the details  |
    | - its count is off by 1 / 2 / 3 or more                  | - 0.2 / 0.3 / 0.4    |
    | - its count is stated, but the sound goes on / unstated  | - 0.2 / 0.05         |
    | - per axis: the opposite, e.g. loud for soft             | - 0.3                |
    | - per axis: stated, but the sound is usual / unstated    | - 0.15 / 0.05        |
    | - at least                                               | 0.3                  |
    | not heard, but one of the same family (bell for phone)   | 0.25                 |
    | not heard                                                | 0                    |

    The sum is divided by (events described + 0.5 x events heard that no described event could be assigned to). It is
    multiplied by 0.6 if both events are heard in the wrong order, by 0.8 if "while" stands for "followed by" or the reverse.
    """
    best, heard, claims = 0.0, scene.events, described.events
    for order in permutations(heard + (None,) * (len(claims) - len(heard))):
        parts = [_credit(event, claim) if event else 0.0 for event, claim in zip(order, claims, strict=False)]
        total = sum(parts) / (len(claims) + UNDESCRIBED_WEIGHT * max(0, len(heard) - len(claims)))
        if len(heard) == len(claims) == 2 and all(parts):
            if scene.relation != described.relation:
                total *= WRONG_RELATION
            elif scene.relation == "followed by" and order != heard:
                total *= WRONG_ORDER
        best = max(best, total)
    return 10 * best


def _credit(heard: Event, described: Event) -> float:
    """The upper part of the table of `agreement`, 0-1."""
    if heard.kind != described.kind:
        return RELATED_KIND if KINDS[heard.kind].family == KINDS[described.kind].family else 0.0
    if heard.count and described.count:
        loss = COUNT_LOSS[min(abs(heard.count - described.count), 3)]
    else:
        loss = COUNT_INVENTED if described.count else COUNT_UNSTATED if heard.count else 0.0
    for axis in KINDS[heard.kind].axes:
        truth, claim = heard.on_axis(axis), described.on_axis(axis)
        if truth != claim:
            loss += ATTRIBUTE_UNSTATED if claim is None else ATTRIBUTE_INVENTED if truth is None else ATTRIBUTE_OPPOSITE
    return max(LOWEST_CREDIT, 1 - loss)


def understate(scene: Scene, rng: np.random.Generator) -> Scene:
    """A description that leaves out each count and attribute of another with a probability of 20 %."""
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
