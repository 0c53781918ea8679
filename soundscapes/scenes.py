"""Generated soundscapes: ten-second scenes of one or two sound events, with captions, from a seed.

A [`Scene`] is the truth from which both its sound (`render`) and its caption (`describe`) are made.

Guaranteed: every number is drawn with PCG64 as a uniform double, whose stream numpy keeps, and waveforms are rounded to 16
bits, so that the same scene and seed give the same samples in every process.
Not guaranteed: `sin`, `exp` and filters may differ in their last bits between CPUs and versions of numpy and scipy. Those
differences stay below 1e-7 of a 16-bit step (numpy 1.26 against 2.4, with and without AVX2 and AVX-512) and change a sample, by
one step, only where they carry it over a rounding boundary: in about one scene of a million.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.signal import sosfilt

from xacle.soundscapes import sounds
from xacle.soundscapes.sounds import SAMPLING_RATE

SECONDS = 10
SAMPLES = SECONDS * SAMPLING_RATE  # 160000
RELATIONS = ("alone", "followed by", "while")
AXES = {"speed": ("slow", "fast"), "loudness": ("soft", "loud"), "pitch": ("low", "high"), "distance": ("far", "near")}
AXIS_OF = {attribute: axis for axis, pair in AXES.items() for attribute in pair}
OPPOSITE = {attribute: pair[1 - i] for pair in AXES.values() for i, attribute in enumerate(pair)}
SPEED = {"slow": 0.55, "fast": 1.8}  # times the kind's usual rate
PITCH = {"low": 0.62, "high": 1.6}  # times the kind's usual frequencies
GAIN = {"soft": 0.3, "loud": 2.6, "far": 0.35, "near": 1.8}
EVENT_RMS, EVENT_PEAK = 0.06, 0.32  # of full scale, before GAIN: whichever is reached first sets the level
SCENE_PEAK, BACKGROUND = 0.97, 5e-4


@dataclass(frozen=True)
class Event:
    """
    A sound event as heard or as described.

    Args:
        kind: One of `KINDS`.
        count: How often it sounds ("a dog barks three times"); 0 if it goes on, or if the number is not stated.
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


def generator(*seed: int) -> np.random.Generator:
    """The random numbers of one seed, or of one sequence of numbers that are a seed together."""
    return np.random.Generator(np.random.PCG64(seed))


def pick(rng: np.random.Generator, choices):
    """One of a sequence, from one uniform number."""
    return choices[int(rng.random() * len(choices))]


# ---- What there is to hear, and how people put it. ----


@dataclass(frozen=True)
class Kind:
    """
    A kind of sound event.

    Args:
        sound: A function of one of the two groups above.
        family: Kinds of one family are more easily taken for each other.
        axes: The axes of its attributes.
        most: The largest count; 0 if it is not counted.
        period: Seconds from call to call; 0 for a sound that goes on.
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
        "{f2} after {f1}",
    ),
    "while": (
        "{f1} while {f2}",
        "{f1} as {f2}",
        "while {f1}, {f2}",
        "{f1} and {f2} at the same time",
        "the sound of {g1} together with {g2}",
    ),
}


def random_event(rng: np.random.Generator, kind: str | None = None) -> Event:
    """An event of any kind or the given one; a countable kind is counted three times out of four, a third of the axes set."""
    kind = pick(rng, tuple(KINDS)) if kind is None else kind
    most = KINDS[kind].most
    count = 1 + int(rng.random() * most) if most and rng.random() < 0.75 else 0
    attributes = [pick(rng, AXES[axis]) for axis in KINDS[kind].axes if rng.random() < 1 / 3]
    if "loudness" in map(AXIS_OF.get, attributes):  # loud and far at once would contradict each other
        attributes = [attribute for attribute in attributes if AXIS_OF[attribute] != "distance"]
    if count == 1:  # one stroke has no speed
        attributes = [attribute for attribute in attributes if AXIS_OF[attribute] != "speed"]
    return Event(kind, count, tuple(attributes))


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene of one event (30 %), two in order (35 %), or two at once (35 %): one goes on, neither drowns the other."""
    draw = rng.random()
    first, relation = random_event(rng), "alone" if draw < 0.3 else "followed by" if draw < 0.65 else "while"
    if relation == "alone":
        return Scene((first,))
    while True:
        second = random_event(rng)
        levels = sum(AXIS_OF[attribute] in ("loudness", "distance") for attribute in first.attributes + second.attributes)
        unlike = second.kind != first.kind
        if unlike and (relation == "followed by" or (levels <= 1 and not (first.count and second.count))):
            return Scene((first, second), relation)


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


def render(scene: Scene, seed: int) -> np.ndarray:
    """
    The sound of a scene, over a faint background noise. Onsets, levels and the voices of its events depend on the seed.

    Returns:
        `[160000]` float32 in (-1, 1), in steps of 1/32768: `to_int16` loses nothing.
    """
    rng = generator(seed, 1)
    if scene.relation == "followed by":
        change = rng.uniform(4.4, 5.6)
        spans = [(0.1, change - 0.15), (change + 0.15, SECONDS - 0.1)]
    else:
        spans = [(rng.uniform(0.1, 0.5), SECONDS - rng.uniform(0.1, 0.5)) for _ in scene.events]
    mix = BACKGROUND * sounds.noise(rng, SAMPLES)
    for number, (event, span) in enumerate(zip(scene.events, spans, strict=True), start=2):
        mix += _render_event(event, generator(seed, number), *span)
    mix *= min(1.0, SCENE_PEAK / np.abs(mix).max())
    return (np.round(mix * 32768) / 32768).astype(np.float32)


def to_int16(wave: np.ndarray) -> np.ndarray:
    """What `render` returns as 16-bit samples `[160000]`, exactly."""
    return (wave * 32768).astype(np.int16)


def _render_event(event: Event, rng, start: float, stop: float) -> np.ndarray:
    """One event between two times in seconds, `[160000]`; what still rings then may ring on."""
    kind, wave = KINDS[event.kind], np.zeros(SAMPLES)
    pitch = PITCH.get(event.on_axis("pitch"), 1.0) * rng.uniform(0.92, 1.08)
    speed = SPEED.get(event.on_axis("speed"), 1.0) * rng.uniform(0.92, 1.08)
    if kind.period:
        for number, onset in enumerate(_onsets(event, rng, start, stop, kind.period / speed)):
            call = kind.sound(rng, number, pitch)[: SAMPLES - onset]
            wave[onset : onset + len(call)] += call
    else:
        first, last = int(start * SAMPLING_RATE), int(stop * SAMPLING_RATE)
        wave[first:last] = kind.sound(rng, last - first, pitch, speed) * sounds.fade(last - first, 0.1, 0.1)
    if event.on_axis("distance"):
        wave = (
            _far(rng, wave)
            if "far" in event.attributes
            else wave + 0.5 * sosfilt(sounds.design_filter("highpass", 1, 2000), wave)
        )
    # The level where the sound is, however much silence there is around it: power averaged with itself as the weight.
    power = (wave**2).reshape(-1, SAMPLING_RATE // 20).mean(axis=1)
    level = np.sqrt((power**2).sum() / power.sum())
    gain = min(EVENT_RMS / level, EVENT_PEAK / np.abs(wave).max()) * 10 ** (rng.uniform(-1.5, 1.5) / 20)
    for attribute in event.attributes:
        gain *= GAIN.get(attribute, 1.0)
    return gain * wave


def _onsets(event: Event, rng, start: float, stop: float, period: float) -> np.ndarray:
    """First samples `[calls]` int of calls that fit between two times, as many as counted or as long as there is time."""
    kind = KINDS[event.kind]
    if event.count:
        start = rng.uniform(start, max(start, stop - event.count * period))
        calls = event.count
    else:
        period *= rng.uniform(1.0, 1.4) if kind.most else 1.0  # what could be counted leaves longer pauses
        calls = max(1, int((stop - start) / period))
    onsets = start + period * (np.arange(calls) + kind.jitter * rng.uniform(0, 1, calls))
    return (onsets * SAMPLING_RATE).astype(int)


def _far(rng, wave: np.ndarray) -> np.ndarray:
    """From afar: muffled, with a diffuse echo of 0.5 s."""
    wave = sosfilt(sounds.design_filter("lowpass", 1, 1200), wave)
    echo = 0.6 * wave
    for delay in rng.uniform(0.03, 0.5, 12):
        shift = int(delay * SAMPLING_RATE)
        echo[shift:] += 0.35 * np.exp(-delay / 0.15) * wave[:-shift]
    return echo
