"""Generated soundscapes sound as they are described, and agreement follows the arithmetic it documents."""

import re
import zlib

import numpy as np
import pytest

from xacle.soundscapes.agreement import agreement
from xacle.soundscapes.captions import OWN_WORDS, PHRASES, TEMPLATES, TIMES, WORDS, describe
from xacle.soundscapes.events import KINDS, Event
from xacle.soundscapes.near_misses import near_miss, understate
from xacle.soundscapes.random_numbers import generator
from xacle.soundscapes.render import SAMPLING_RATE, render, to_int16
from xacle.soundscapes.scenes import Scene, random_scene

COUNTED = [kind for kind in KINDS if KINDS[kind].most]
HOP = SAMPLING_RATE // 100


def alone(kind: str, *attributes: str, count: int = 0) -> Scene:
    return Scene((Event(kind, count, attributes),))


def energy(wave) -> np.ndarray:
    """`[1000]` in 10 ms frames."""
    return (wave.astype(np.float64) ** 2).reshape(-1, HOP).mean(axis=1)


def centroid(wave) -> float:
    """The mean frequency of a sound in Hz, weighted by power."""
    power = np.abs(np.fft.rfft(wave)) ** 2
    return float((power * np.fft.rfftfreq(len(wave), 1 / SAMPLING_RATE)).sum() / power.sum())


def loudness(wave) -> float:
    """Root mean square where there is sound, in dB of full scale."""
    frames = energy(wave)
    return float(10 * np.log10(frames[frames > 0.05 * frames.max()].mean()))


def onsets(wave, period: float) -> list[int]:
    """Frames where a level smoothed over an eighth of a period doubles within a quarter, at least half a period apart."""
    window, past, pause = int(12 * period) + 1, int(25 * period) + 1, int(50 * period)
    level, found = np.convolve(energy(wave), np.ones(window) / window, mode="same"), []
    for frame in range(1, len(level)):
        rises = level[frame] > max(2 * level[max(0, frame - past) : frame].min(), 0.1 * level.max())
        if rises and (not found or frame - found[-1] >= pause):
            found.append(frame)
    return found


def phrase_pattern(kind: str) -> str:
    """Matches the subject's noun and the verb of any phrase of a kind."""
    parts = [phrase.lstrip("~-").split("|") for phrase in PHRASES[kind]]
    return "|".join(rf"{subject.split()[-1]} (?:{verb}|{gerund})\b" for subject, verb, gerund, *_ in parts)


# ---- Sounds ----


def test_the_same_seed_gives_the_same_samples_in_another_process_and_on_another_day(run_python):
    code = """
import zlib
from xacle.soundscapes.captions import describe
from xacle.soundscapes.events import KINDS, Event
from xacle.soundscapes.random_numbers import generator
from xacle.soundscapes.render import render, to_int16
from xacle.soundscapes.scenes import Scene, random_scene
rng = generator(5)
scenes = [Scene((Event(kind),)) for kind in KINDS] + [random_scene(rng) for _ in range(6)]
print(zlib.crc32(b"".join(to_int16(render(scene, seed)).tobytes() for seed, scene in enumerate(scenes))))
print(zlib.crc32("".join(describe(scene, rng) for scene in scenes).encode()))
"""
    rng = generator(5)
    scenes = [alone(kind) for kind in KINDS] + [random_scene(rng) for _ in range(6)]
    sounds = zlib.crc32(b"".join(to_int16(render(scene, seed)).tobytes() for seed, scene in enumerate(scenes)))
    captions = zlib.crc32("".join(describe(scene, rng) for scene in scenes).encode())
    assert run_python(code, package=True).split() == [str(sounds), str(captions)]
    assert (sounds, captions) == (1293109568, 4277383833)  # whatever the version of numpy
    assert (render(scenes[0], 0) != render(scenes[0], 1)).mean() > 0.9


def test_scenes_are_ten_seconds_of_16_bit_samples_that_never_clip():
    rng = generator(1)
    for seed in range(60):
        wave = render(random_scene(rng), seed)
        assert wave.shape == (160000,) and wave.dtype == np.float32
        assert 0.003 < np.abs(wave).max() < 0.98
        assert (to_int16(wave) / 32768 == wave).all()
        assert (energy(wave) > 1e-8).all()  # no digital silence


@pytest.mark.parametrize("kind", COUNTED)
def test_what_is_counted_sounds_that_often(kind):
    for count in range(1, KINDS[kind].most + 1):
        for seed in range(3):
            assert len(onsets(render(alone(kind, count=count), seed), KINDS[kind].period)) == count
    assert len(onsets(render(alone(kind), seed=1), KINDS[kind].period)) > KINDS[kind].most


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "pitch" in KINDS[kind].axes])
def test_high_is_higher_than_low(kind):
    for seed in range(2):
        low, usual, high = (centroid(render(alone(kind, *pitch), seed)) for pitch in (["low"], [], ["high"]))
        assert low * 1.15 < usual < high / 1.15


@pytest.mark.parametrize("kind", KINDS)
def test_loud_is_louder_and_far_is_softer_and_duller(kind):
    if "loudness" in KINDS[kind].axes:
        soft, usual, loud = (loudness(render(alone(kind, *level), 3)) for level in (["soft"], [], ["loud"]))
        assert soft + 6 < usual < loud - 6
    if "distance" in KINDS[kind].axes:
        far, near = render(alone(kind, "far"), 3), render(alone(kind, "near"), 3)
        assert loudness(far) + 8 < loudness(near)
        if kind != "owl":  # one low tone has no high frequencies
            assert centroid(far) < centroid(near)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "speed" in KINDS[kind].axes])
def test_fast_is_faster_than_slow(kind):
    def rate(wave) -> float:
        if kind != "siren":
            return len(onsets(wave, (KINDS[kind].period or 0.5) / 2))
        spectra = np.abs(np.fft.rfft(wave.reshape(-1, 2 * HOP), axis=1))  # 20 ms: the siren's pitch now
        pitch = spectra[10:-30].argmax(axis=1)
        return int((np.diff(np.sign(pitch - pitch.mean())) != 0).sum())

    slow, usual, fast = (rate(render(alone(kind, *speed), 4)) for speed in (["slow"], [], ["fast"]))
    assert slow * 1.3 < usual < fast / 1.3


def test_followed_by_keeps_the_order_and_while_is_at_once():
    owl, crickets = Event("owl"), Event("crickets")
    for seed in range(3):
        for events in ((owl, crickets), (crickets, owl)):
            wave = render(Scene(events, "followed by"), seed)
            first, second = centroid(wave[: 4 * SAMPLING_RATE]), centroid(wave[6 * SAMPLING_RATE :])
            assert (first < 1000 and second > 4000) if events[0] is owl else (first > 4000 and second < 1000)
        together = render(Scene((owl, crickets), "while"), seed)
        for part in np.split(together, 4)[:3]:
            power = np.abs(np.fft.rfft(part)) ** 2
            frequency = np.fft.rfftfreq(len(part), 1 / SAMPLING_RATE)
            low, high = power[(frequency > 250) & (frequency < 700)].sum(), power[(frequency > 4000)].sum()
            assert 0.02 < low / high < 50


def test_kinds_differ_in_simple_measurements():
    """Mean and spread of the spectrum in octaves and how the level fluctuates, against the mean of two other seeds."""
    octave = np.log2(np.fft.rfftfreq(160000, 1 / SAMPLING_RATE)[1:])

    def traits(wave) -> np.ndarray:
        power = np.abs(np.fft.rfft(wave))[1:] ** 2
        center = np.average(octave, weights=power)
        spread = np.sqrt(np.average((octave - center) ** 2, weights=power))
        level = energy(wave)[50:-50]
        fluctuation = (np.abs(np.fft.rfft(level / level.mean() - 1)) / len(level)) ** 2
        bands = [fluctuation[low:high].sum() for low, high in ((1, 9), (9, 27), (27, 81), (81, 240))]  # to 1, 3, 9, 27 Hz
        return np.array([center, spread, *np.log10(np.array(bands) + 1e-3)])

    first, second, third = (np.array([traits(render(alone(kind), seed)) for kind in KINDS]) for seed in range(3))
    distance = np.linalg.norm(third[:, None] - (first + second)[None] / 2, axis=2)
    assert (distance.argmin(axis=1) == np.arange(len(KINDS))).mean() > 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Event("trumpet"), "no sound event called 'trumpet'"),
        (lambda: Event("dog", 6), "count of dog must be 0 to 5"),
        (lambda: Event("rain", 1), "count of rain must be 0 to 0"),
        (lambda: Event("dog", 1, ("fast",)), "dog has at most one attribute of each"),
        (lambda: Event("dog", 1, ("loud", "soft")), "dog has at most one attribute of each"),
        (lambda: Scene((Event("dog"),), "while"), "'followed by' and 'while' two"),
        (lambda: Scene((Event("dog"), Event("dog", 2)), "while"), "of different kinds"),
    ],
)
def test_events_and_scenes_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- Captions ----


def test_captions_state_all_of_a_scene_in_good_grammar():
    rng = generator(2)
    for _ in range(1500):
        scene = random_scene(rng)
        caption = describe(scene, rng)
        assert re.fullmatch(r"[A-Z][a-z,-]*( [a-z-]+,?)*", caption) and not caption.endswith(","), caption
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", caption), caption
        for event in scene.events:
            assert re.search(phrase_pattern(event.kind), caption, re.IGNORECASE), (event.kind, caption)
            if event.count:
                assert re.search(rf"\b{TIMES[event.count]}\b", caption), caption
            for attribute in event.attributes:
                words = sum(OWN_WORDS.get((event.kind, attribute), WORDS[attribute]), ())
                assert any(re.search(rf"\b{word}\b", caption, re.IGNORECASE) for word in words), (attribute, caption)
        if not any(event.count for event in scene.events):
            assert not re.search(r"\b(once|twice|times)\b", caption), caption


def test_verbs_agree_with_their_subjects():
    for phrase in (phrase for phrases in PHRASES.values() for phrase in phrases):
        subject, verb, gerund, *_ = phrase.lstrip("~-").split("|")
        plural = subject.endswith("s") or subject == "people"
        assert verb.endswith("s") != plural and gerund.endswith("ing"), phrase
        assert not (plural and subject.split()[0] in ("a", "an"))


@pytest.mark.parametrize("relation", TEMPLATES)
def test_captions_of_one_scene_differ_in_phrasing(relation):
    rng = generator(3)
    events = (Event("dog", 3, ("far",)), Event("rain"))[: 1 if relation == "alone" else 2]
    captions = {describe(Scene(events, relation), rng) for _ in range(200)}
    assert len(TEMPLATES[relation]) >= 4 and len(captions) >= 12
    assert "A dog barks three times in the distance" in captions or relation != "alone"


def test_the_order_can_be_read_from_a_caption():
    rng = generator(4)
    for _ in range(100):
        caption = describe(Scene((Event("dog"), Event("rain")), "followed by"), rng)
        assert (caption.lower().index("dog") < caption.lower().index("rain")) != (" after " in caption)


# ---- Agreement ----


def test_agreement_is_the_documented_arithmetic():
    dog, bell, rain = Event("dog", 3, ("loud",)), Event("bell"), Event("rain")
    scene = Scene((dog, bell), "followed by")

    def described(*events, relation="followed by"):
        return agreement(scene, Scene(events, relation if len(events) == 2 else "alone"))

    for value, expected in {
        described(dog, bell): 10,
        described(Event("dog", 2, ("loud",)), bell): 9,  # (0.8 + 1) / 2
        described(Event("dog", 1, ("loud",)), bell): 8.5,
        described(Event("dog", 0, ("loud",)), bell): 9.75,
        described(Event("dog", 3, ("soft",)), bell): 8.5,
        described(Event("dog", 3), bell): 9.75,
        described(Event("dog", 3, ("loud", "high")), bell): 9.25,
        described(dog, Event("bell", 2)): 9,
        described(dog, Event("phone")): 6.25,  # of one family
        described(dog, rain): 5,
        described(dog): 20 / 3,
        described(bell, dog): 5,
        described(dog, bell, relation="while"): 8,
        described(rain): 0,
        agreement(Scene((dog,)), Scene((dog, rain), "while")): 5,
        agreement(Scene((dog, bell), "while"), Scene((bell, dog), "while")): 10,
        agreement(Scene((dog,)), Scene((Event("dog", 0, ("soft", "high", "near")),))): 10 * (1 - 0.05 - 0.3 - 0.15 - 0.15),
    }.items():
        assert value == pytest.approx(expected)


def test_true_captions_beat_near_misses_and_those_beat_mismatches():
    rng = generator(6)
    for _ in range(500):
        scene, other = random_scene(rng), random_scene(rng)
        true, miss = agreement(scene, understate(scene, rng)), agreement(scene, near_miss(scene, rng))
        assert agreement(scene, scene) == 10 and 8 <= true <= 10
        assert 3 <= miss < 9.5
        if not other.kinds & scene.kinds:
            assert agreement(scene, other) <= 2.5 < miss
