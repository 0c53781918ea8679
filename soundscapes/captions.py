"""Captions of scenes: phrases for each kind of event, words for its attributes, and sentence patterns."""

import numpy as np

from xacle.soundscapes.events import AXIS_OF, Event
from xacle.soundscapes.random_numbers import pick
from xacle.soundscapes.scenes import Scene

# "subject|verb|gerund|complement". Adjectives go with the subject; after "~" only those of distance and the kind's own, after
# "-" none ("a loud person types" is not what is meant).
PHRASES = {
    "rain": ("rain|falls|falling", "rain|patters|pattering|on a roof"),
    "wind": ("wind|blows|blowing", "the wind|howls|howling", "wind|blows|blowing|through the trees"),
    "waves": ("waves|roll|rolling|onto a beach", "ocean waves|break|breaking|on the shore"),
    "thunder": ("thunder|rumbles|rumbling", "thunder|roars|roaring"),
    "engine": ("an engine|runs|running", "an engine|idles|idling", "a motor|hums|humming"),
    "clock": ("~a clock|ticks|ticking", "~an old clock|ticks|ticking"),
    "siren": ("a siren|wails|wailing", "an emergency siren|sounds|sounding"),
    "bell": ("a bell|rings|ringing", "a church bell|tolls|tolling"),
    "phone": ("~a phone|rings|ringing", "~a telephone|rings|ringing"),
    "alarm": ("an alarm|beeps|beeping", "an electronic alarm|sounds|sounding"),
    "horn": ("a car horn|honks|honking", "~a car|honks|honking"),
    "dog": ("~a dog|barks|barking", "~a dog|woofs|woofing"),
    "cat": ("~a cat|meows|meowing", "~a cat|cries|crying"),
    "bird": ("~a bird|chirps|chirping", "~a bird|tweets|tweeting"),
    "owl": ("~an owl|hoots|hooting", "~an owl|calls|calling"),
    "crickets": ("~crickets|chirp|chirping", "~insects|chirp|chirping|in the grass"),
    "footsteps": ("-someone|walks|walking", "-a person|walks|walking|on a hard floor", "footsteps|tap|tapping|on the floor"),
    "typing": ("-someone|types|typing|on a keyboard", "-a person|types|typing", "~computer keys|click|clicking"),
    "knock": ("-someone|knocks|knocking|on a door", "-a person|knocks|knocking|on wood"),
    "applause": ("-an audience|applauds|applauding", "-a crowd|claps|clapping", "-people|clap|clapping"),
    "drip": ("~water|drips|dripping", "~a tap|drips|dripping"),
}
TIMES = ("", "once", "twice", "three times", "four times", "five times")
WORDS = {  # attribute: (adjectives, adverbials)
    "slow": ((), ("slowly", "at a slow pace")),
    "fast": ((), ("quickly", "rapidly", "at a fast pace")),
    "soft": (("soft", "quiet"), ("softly", "quietly")),
    "loud": (("loud",), ("loudly",)),
    "low": (("low-pitched",), ("at a low pitch",)),
    "high": (("high-pitched",), ("at a high pitch",)),
    "far": (("distant",), ("in the distance", "far away")),
    "near": (("nearby",), ("nearby", "close by")),
}
OWN_WORDS = {
    ("rain", "soft"): (("light",), ("lightly", "softly")),
    ("rain", "loud"): (("heavy",), ("heavily", "loudly")),
    ("wind", "soft"): (("gentle",), ("gently", "softly")),
    ("wind", "loud"): (("strong",), ("strongly", "loudly")),
    ("dog", "low"): (("large", "big"), ("at a low pitch",)),
    ("dog", "high"): (("small", "little"), ("at a high pitch",)),
}
TEMPLATES = {  # f: a clause with a verb, "a dog barks"; g: with a gerund, "a dog barking"
    "alone": ("{f1}", "{g1}", "the sound of {g1}", "we can hear {g1}", "{g1} and nothing else"),
    "followed by": (
        "{f1}, followed by {g2}",
        "{g1} followed by {g2}",
        "{f1}, then {f2}",
        "first {f1}, and then {f2}",
        "{f1} before {f2}",
        "{g1}, and then {g2}",
    ),
    "while": (
        "{f1} while {f2}",
        "{f1} as {f2}",
        "while {f1}, {f2}",
        "{f1} and {f2} at the same time",
        "the sound of {g1} together with {g2}",
    ),
}


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that states all of a scene, e.g. "A dog barks three times, followed by a distant siren wailing"."""
    clauses = {}
    for number, event in enumerate(scene.events, start=1):
        clauses[f"f{number}"], clauses[f"g{number}"] = _clause(event, rng, 1), _clause(event, rng, 2)
    caption = pick(rng, TEMPLATES[scene.relation]).format(**clauses)
    return caption[0].upper() + caption[1:]


def _clause(event: Event, rng: np.random.Generator, form: int) -> str:
    """Subject, verb (form 1) or gerund (2), manner, complement, count, other adverbials: in this order."""
    phrase = pick(rng, PHRASES[event.kind]).split("|")
    subject, verb, complement = phrase[0].lstrip("~-"), phrase[form], "".join(phrase[3:])
    manner, others = [], []
    for attribute in event.attributes:
        own = OWN_WORDS.get((event.kind, attribute))
        adjectives, adverbials = own or WORDS[attribute]
        allowed = phrase[0][0] != "-" and (phrase[0][0] != "~" or own or AXIS_OF[attribute] == "distance")
        if allowed and adjectives and subject == phrase[0].lstrip("~-") and rng.random() < 0.5:  # one adjective at most
            subject = _with_adjective(subject, pick(rng, adjectives))
        else:
            word = pick(rng, adverbials)
            (manner if word.endswith("ly") else others).append(word)
    return " ".join(
        part for part in [subject, verb, " and ".join(manner), complement, TIMES[event.count], " ".join(others)] if part
    )


def _with_adjective(subject: str, adjective: str) -> str:
    article, _, noun = subject.partition(" ")
    if article in ("a", "an"):
        return f"{'an' if adjective[0] in 'aeiou' else 'a'} {adjective} {noun}"
    return f"the {adjective} {noun}" if article == "the" else f"{adjective} {subject}"
