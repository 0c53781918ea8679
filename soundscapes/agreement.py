"""How well a description fits a generated scene, by a rule that can be computed by hand."""

from itertools import permutations

from xacle.soundscapes.events import KINDS, Event
from xacle.soundscapes.scenes import Scene

RELATED_KIND = 0.25
COUNT_LOSS = (0.0, 0.2, 0.3, 0.4)  # off by 0, 1, 2, 3 or more
COUNT_INVENTED, COUNT_UNSTATED = 0.2, 0.05
ATTRIBUTE_OPPOSITE, ATTRIBUTE_INVENTED, ATTRIBUTE_UNSTATED = 0.3, 0.15, 0.05
LOWEST_CREDIT = 0.3
UNDESCRIBED_WEIGHT = 0.5
WRONG_ORDER, WRONG_RELATION = 0.5, 0.8


def agreement(scene: Scene, described: Scene) -> float:
    """
    How well a description fits a sound, 0-10, without any noise.

    Each described event is matched with one event of the scene (one to one, the best assignment counts) and gets a credit:

    | described event                                             | credit               |
    |-------------------------------------------------------------|----------------------|
    | is in the scene                                             | 1, less the details  |
    | - its count is off by 1 / 2 / 3 or more                     | - 0.2 / 0.3 / 0.4    |
    | - its count is stated, but the sound has none / is unstated | - 0.2 / 0.05         |
    | - per axis: the opposite, e.g. loud for soft                | - 0.3                |
    | - per axis: stated, but the sound is usual / is unstated    | - 0.15 / 0.05        |
    | - at least                                                  | 0.3                  |
    | is not, but one of the same family is (bell for phone)      | 0.25                 |
    | is not                                                      | 0                    |

    The sum is divided by (events described + 0.5 x events of the scene without a described event). It is multiplied by 0.5 if
    both events are described in the wrong order, by 0.8 if "while" stands for "followed by" or the reverse.
    """
    best, events, claims = 0.0, scene.events, described.events
    for order in permutations(events + (None,) * (len(claims) - len(events))):
        parts = [_credit(event, claim) if event else 0.0 for event, claim in zip(order, claims, strict=False)]
        total = sum(parts) / (len(claims) + UNDESCRIBED_WEIGHT * max(0, len(events) - len(claims)))
        if len(events) == len(claims) == 2 and all(parts):
            if scene.relation != described.relation:
                total *= WRONG_RELATION
            elif scene.relation == "followed by" and order != events:
                total *= WRONG_ORDER
        best = max(best, total)
    return 10 * best


def _credit(event: Event, claim: Event) -> float:
    """The upper part of the table of `agreement`, 0-1."""
    if event.kind != claim.kind:
        return RELATED_KIND if KINDS[event.kind].family == KINDS[claim.kind].family else 0.0
    if event.count and claim.count:
        loss = COUNT_LOSS[min(abs(event.count - claim.count), 3)]
    else:
        loss = COUNT_INVENTED if claim.count else COUNT_UNSTATED if event.count else 0.0
    for axis in KINDS[event.kind].axes:
        truth, claimed = event.on_axis(axis), claim.on_axis(axis)
        if truth != claimed:
            loss += ATTRIBUTE_UNSTATED if claimed is None else ATTRIBUTE_INVENTED if truth is None else ATTRIBUTE_OPPOSITE
    return max(LOWEST_CREDIT, 1 - loss)
