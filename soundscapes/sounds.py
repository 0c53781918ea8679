"""The sounds of events, made from noise, sines and filters. events.py says which kind of event has which sound."""

from functools import cache

import numpy as np
from scipy.signal import butter, lfilter, sosfilt

SAMPLING_RATE = 16000

# ---- Building blocks of sounds. All are [samples] float64 at 16 kHz; levels do not matter, `render` sets them. ----


def timeline(seconds: float) -> np.ndarray:
    return np.arange(int(seconds * SAMPLING_RATE)) / SAMPLING_RATE


def noise(rng, samples: int) -> np.ndarray:
    return rng.uniform(-1, 1, samples)


@cache  # designing a filter takes longer than running it over a short sound
def design_filter(kind: str, order: int, *edges: int) -> np.ndarray:
    return butter(order, edges if len(edges) > 1 else edges[0], kind, fs=SAMPLING_RATE, output="sos")


def band(wave: np.ndarray, low: int, high: int) -> np.ndarray:
    return sosfilt(design_filter("bandpass", 2, low, high), wave)


def hits(rng, samples: int, rate: float) -> np.ndarray:
    """Impulses at random moments, `rate` a second, few of them strong."""
    return (rng.random(samples) < rate / SAMPLING_RATE) * rng.random(samples) ** 3


def wander(rng, samples: int, seconds: float) -> np.ndarray:
    """A curve in 0..1 that takes a new random value every so many seconds."""
    points = rng.random(int(samples / SAMPLING_RATE / seconds) + 3)
    return np.interp(np.arange(samples) / SAMPLING_RATE / seconds, np.arange(len(points)), points)


def harmonic_tone(frequency: np.ndarray, amplitudes) -> np.ndarray:
    """A tone of a frequency curve `[samples]` in Hz with overtones; amplitudes may be curves as well."""
    phase = 2 * np.pi * np.cumsum(frequency) / SAMPLING_RATE
    return sum(amplitude * np.sin(k * phase) for k, amplitude in enumerate(amplitudes, start=1))


def modes(time: np.ndarray, frequencies, amplitudes, decays) -> np.ndarray:
    """A struck body: decaying partials, `decays` in seconds."""
    partials = zip(frequencies, amplitudes, decays, strict=True)
    return sum(a * np.sin(2 * np.pi * f * time) * np.exp(-time / d) for f, a, d in partials)


def fade(samples: int, attack: float, release: float) -> np.ndarray:
    """An envelope that rises and falls linearly, within the given seconds."""
    position = np.arange(samples) / SAMPLING_RATE
    return np.clip(np.minimum(position / attack, (position[-1] - position) / release), 0, 1)


# ---- Continuous sounds: (rng, samples, pitch, speed) -> [samples]. ----


def rain(rng, samples, pitch, speed):
    hiss = 0.1 * band(noise(rng, samples), 900, 7000) * (0.8 + 0.2 * wander(rng, samples, 2))
    return hiss + 2 * band(hits(rng, samples, 300), 1500, 6500) + 3 * band(hits(rng, samples, 40), 500, 1800)


def wind(rng, samples, pitch, speed):
    gust = wander(rng, samples, 1.1)
    low, middle, whistle = (band(noise(rng, samples), *edges) for edges in ((80, 300), (250, 600), (600, 850)))
    return (0.25 + gust) * low + 1.2 * gust**2 * middle + gust**3 * whistle


def waves(rng, samples, pitch, speed):
    cycle = (np.arange(samples) / SAMPLING_RATE / rng.uniform(3.2, 4.2) + rng.random()) % 1
    swell = np.minimum(cycle / 0.45, (1 - cycle) / 0.55) ** 2
    return (0.1 + swell) * band(noise(rng, samples), 80, 900) + swell**2 * band(noise(rng, samples), 900, 5000)


def engine(rng, samples, pitch, speed):
    cycles = np.cumsum(28 * pitch * (0.95 + 0.1 * wander(rng, samples, 0.7))) / SAMPLING_RATE
    firing = np.exp(-7 * (cycles % 1)) * (0.6 + 0.4 * rng.random(int(cycles[-1]) + 1))[cycles.astype(int)]
    return band(firing, 40, int(450 * pitch)) + 0.3 * band(firing * noise(rng, samples), 300, int(2500 * pitch))


def siren(rng, samples, pitch, speed):
    sweep = np.cos(2 * np.pi * (0.4 * speed**2 * np.arange(samples) / SAMPLING_RATE + rng.random()))
    return harmonic_tone(pitch * (950 - 350 * sweep), (1, 0.5, 0.3))


def crickets(rng, samples, pitch, speed):
    rate, time = 1.9 * speed, np.arange(samples) / SAMPLING_RATE
    pulse = (time * rate + rng.random()) % 1 / rate * rng.uniform(38, 46)  # a chirp is four short pulses, then a rest
    carrier = np.sin(2 * np.pi * rng.uniform(4500, 4900) * time)
    return (pulse < 4) * np.sin(np.pi * pulse) ** 2 * carrier * (0.8 + 0.2 * wander(rng, samples, 1))


def applause(rng, samples, pitch, speed):
    claps = lfilter([1], [1, -np.exp(-1 / (0.006 * SAMPLING_RATE))], hits(rng, samples, 110))
    return band(claps * noise(rng, samples), 700, 3500) * fade(samples, 0.8, 1.0)


# ---- Sounds made of single calls or strokes: (rng, number, pitch) -> [samples], `number` counts the calls of an event. ----


def thunder(rng, number, pitch):
    time = timeline(2.8)
    crack = band(noise(rng, len(time)), 300, 3000) * np.exp(-time / 0.1)
    rolling = np.exp(-time / 0.9) * (0.4 + wander(rng, len(time), 0.2)) * np.minimum(time / 0.04, 1)
    return crack + 8 * rolling * band(noise(rng, len(time)), 35, 160)


def bell(rng, number, pitch):
    ratios = np.array([0.5, 1, 1.19, 1.5, 2, 2.67, 3.01, 4.1, 5.43])  # inharmonic, as of a church bell
    time, amplitudes = timeline(2.5), (0.4, 1, 0.8, 0.4, 0.9, 0.4, 0.4, 0.3, 0.2)
    strike = 0.5 * band(noise(rng, len(time)), 2000, 6000) * np.exp(-time / 0.008)
    return strike + modes(time, 420 * pitch * ratios, amplitudes, 0.8 / ratios**0.7) * fade(len(time), 0.002, 0.3)


def phone(rng, number, pitch):
    time = timeline(0.95)
    stroke = np.minimum(time, 0.75) * 24  # a clapper between two gongs
    ringing = np.exp(-1.6 * (stroke % 1)) * np.exp(-np.maximum(time - 0.75, 0) / 0.05)
    gongs = [modes(time, np.array([1, 2.4]) * f * pitch, (1, 0.4), (9, 9)) for f in (1150, 1420)]
    return ringing * np.where(stroke.astype(int) % 2, *gongs)


def alarm(rng, number, pitch):
    time = timeline(0.13)
    return harmonic_tone(np.full(len(time), 1450 * pitch), (1, 0.25, 0.4)) * fade(len(time), 0.004, 0.006)


def horn(rng, number, pitch):
    time, overtones = timeline(0.45), [1 / k**0.7 for k in range(1, 10)]
    tones = [harmonic_tone(np.full(len(time), f * pitch), overtones) for f in (380, 475)]
    return (tones[0] + tones[1]) * fade(len(time), 0.02, 0.05)


def dog(rng, number, pitch):
    time = timeline(rng.uniform(0.18, 0.24))
    course = time / time[-1]
    frequency = 430 * pitch * rng.uniform(0.95, 1.05) * (1 + 0.25 * np.sin(np.pi * np.minimum(3 * course, 1)) - 0.5 * course)
    throat = harmonic_tone(frequency, [(k * frequency < 7000) / k**0.4 for k in range(1, 13)]) + 1.2 * noise(rng, len(time))
    formants = [(450, 900), (1100, 1700), (2200, 3200)]
    mouth = [band(throat, int(low * pitch**0.6), int(high * pitch**0.6)) for low, high in formants]
    return (mouth[0] + 0.8 * mouth[1] + 0.4 * mouth[2]) * np.minimum(course / 0.08, 1) * (1 - course) ** 1.2


def cat(rng, number, pitch):
    time = timeline(rng.uniform(0.65, 0.8))
    course = time / time[-1]
    frequency = 520 * pitch * (1 + 0.3 * np.sin(np.pi * course**0.7) - 0.25 * course)
    mouth, opening = pitch**0.6, np.sin(np.pi * course**0.8)  # "mi-a-ow": the mouth opens and closes
    harmonics = [
        np.exp(-(((k * frequency / mouth - 700 - 900 * opening) / 500) ** 2))
        + 0.5 * np.exp(-(((k * frequency / mouth - 2900) / 600) ** 2))
        for k in range(1, 8)
    ]
    return harmonic_tone(frequency, harmonics) * fade(len(time), 0.08, 0.25)


def bird(rng, number, pitch):
    time = timeline(rng.uniform(0.15, 0.2))
    course = time / time[-1]
    frequency = 2900 * pitch * (1 + 0.4 * np.sin(np.pi * course) * (1 - 0.3 * course) + 0.03 * np.sin(2 * np.pi * 55 * time))
    return harmonic_tone(frequency, (1,)) * np.sin(np.pi * course) ** 0.7


def owl(rng, number, pitch):
    time = timeline(0.5)
    course = time / time[-1]
    frequency = 370 * pitch * (1 + 0.06 * np.sin(np.pi * course) - 0.06 * course)
    breath = 0.15 * band(noise(rng, len(time)), 300, 800)
    return (harmonic_tone(frequency, (1, 0.15, 0.06)) + breath) * np.sin(np.pi * course)


def footstep(rng, number, pitch):
    time, foot = timeline(0.2), 1.08 if number % 2 else 0.92
    thump = modes(time, (75 * foot, 130 * foot), (1, 0.6), (0.04, 0.025))
    heel = band(noise(rng, len(time)), 900, 3500) * (
        np.exp(-time / 0.007) + 0.4 * (time > 0.07) * np.exp(-(time - 0.07) / 0.02)
    )
    return rng.uniform(0.8, 1) * (thump + 0.6 * heel)


def key(rng, number, pitch):
    time, press = timeline(0.11), rng.uniform(0.85, 1.15)
    click = np.exp(-time / 0.004) + 0.5 * (time > 0.07) * np.exp(-np.maximum(time - 0.07, 0) / 0.003)
    body = modes(time, (330 * press, 900 * press), (0.25, 0.15), (0.012, 0.008))
    return rng.uniform(0.5, 1) * (band(noise(rng, len(time)), 1800, 6000) * click + body)


def tick(rng, number, pitch):
    time, wheel = timeline(0.05), 1.0 if number % 2 else 1.25  # tick, tock
    strike = 0.3 * noise(rng, len(time)) * np.exp(-time / 0.001)
    return strike + modes(time, np.array([1900, 3050, 4700]) * wheel, (1, 0.8, 0.6), (0.006, 0.005, 0.003))


def drip(rng, number, pitch):
    time = timeline(0.18)
    bubble = harmonic_tone(pitch * rng.uniform(750, 850) * (1 + 9 * time), (1, 0.1)) * np.exp(-time / 0.028)
    splash = 0.4 * band(noise(rng, len(time)), 2500, 6500) * np.exp(-time / 0.004)
    return (bubble + splash) * np.minimum(time / 0.002, 1)


def knock(rng, number, pitch):
    time = timeline(0.15)
    wood = modes(time, np.array([170, 320, 540, 1010]) * rng.uniform(0.97, 1.03), (1, 0.9, 0.6, 0.5), (0.03, 0.025, 0.02, 0.01))
    return rng.uniform(0.85, 1) * (wood + 0.5 * noise(rng, len(time)) * np.exp(-time / 0.002))
