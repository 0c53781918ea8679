"""The sound of a scene: its events placed in time, leveled and mixed.

Guaranteed: all random numbers come from random_numbers.py and waveforms are rounded to 16 bits, so the same scene and seed give
the same samples in every process.
Not guaranteed: `sin`, `exp` and filters may differ in their last bits between CPUs and versions of numpy and scipy. Those
differences stay below 1e-7 of a 16-bit step (numpy 1.26 against 2.4, with and without AVX2 and AVX-512) and change a sample, by
one step, only if they carry it over a rounding boundary: in about one scene of a million.
"""

import numpy as np
from scipy.signal import sosfilt

from xacle.soundscapes import sounds
from xacle.soundscapes.events import KINDS, Event
from xacle.soundscapes.random_numbers import generator
from xacle.soundscapes.scenes import Scene
from xacle.soundscapes.sounds import SAMPLING_RATE

SECONDS = 10
SAMPLES = SECONDS * SAMPLING_RATE  # 160000
SPEED = {"slow": 0.55, "fast": 1.8}  # times the kind's usual rate
PITCH = {"low": 0.62, "high": 1.6}  # times the kind's usual frequencies
GAIN = {"soft": 0.3, "loud": 2.6, "far": 0.35, "near": 1.8}
EVENT_RMS, EVENT_PEAK = 0.06, 0.32  # of full scale, before GAIN: whichever is reached first sets the level
SCENE_PEAK, BACKGROUND = 0.97, 5e-4


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
