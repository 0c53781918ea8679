"""`AlignmentReward`: a reward function that trainers of audio generators can call."""

import math

import numpy as np
import pytest
import soundfile as sf
import soxr
import torch

from xacle.demo.tiny_models import CAPTIONS, make_sound
from xacle.scoring.reward import AlignmentReward
from xacle.scoring.scorer import Scorer


@pytest.fixture(scope="module")
def reward(tiny_folder):
    return AlignmentReward(tiny_folder, device="cpu")


WAVES = [make_sound(name, 2.0) for name in CAPTIONS]
PROMPTS = list(CAPTIONS.values())


def test_rewards_are_the_scorers_ratings_in_order(reward):
    expected = reward.scorer.score(WAVES, PROMPTS)
    rewards = reward(PROMPTS, WAVES)
    assert all(type(value) is float for value in rewards)
    np.testing.assert_allclose(rewards, expected, atol=1e-5)
    np.testing.assert_allclose(reward(PROMPTS[::-1], WAVES[::-1]), expected[::-1], atol=1e-5)
    assert expected.std() > 1e-3
    assert reward([], []) == []


def test_clips_come_in_every_form(reward, tmp_path):
    (expected,) = reward(PROMPTS[:1], WAVES[:1])
    sf.write(tmp_path / "siren.wav", WAVES[0], 16000, subtype="FLOAT")
    wave = torch.tensor(WAVES[0], requires_grad=True)
    forms = [wave, wave.expand(2, -1), wave[None], tmp_path / "siren.wav", str(tmp_path / "siren.wav"), WAVES[0].tolist()]
    forms.append({"array": WAVES[0], "sampling_rate": 16000})
    rewards = reward(PROMPTS[:1] * len(forms), forms)
    np.testing.assert_allclose(rewards, expected, atol=1e-5)
    assert not any(isinstance(value, torch.Tensor) for value in rewards) and wave.grad is None


def test_sampling_rates(reward):
    rain = make_sound("rain", 2.0)
    fast = soxr.resample(rain, 16000, 48000)
    (expected,) = reward(["Rain"], [rain])
    (other,) = reward(["Rain"], [fast])  # taken for 16 kHz
    found = reward(["Rain"] * 2, [fast, rain], sampling_rate=[48000, 16000])
    np.testing.assert_allclose(found, expected, atol=0.2 * abs(other - expected))
    for rate in (48000, [48000], torch.tensor([48000]), np.array([48000])):
        assert reward(["Rain"], [fast], sampling_rate=rate) == pytest.approx(found[:1], abs=1e-6)
    with pytest.raises(ValueError, match="2 for 1 clips"):
        reward(["Rain"], [rain], sampling_rate=[16000, 16000])


def test_a_bad_clip_gets_the_fallback_and_a_warning(reward, transformers_log):
    bad = [np.full(16000, np.nan), np.zeros(0), "missing.wav", None, np.zeros((2, 3, 4))]
    expected = reward(PROMPTS[:2], WAVES[:2])
    rewards = reward([PROMPTS[0], *["Rain"] * 5, " ", PROMPTS[1]], [WAVES[0], *bad, WAVES[0], WAVES[1]])
    assert all(map(math.isnan, rewards[1:7]))
    np.testing.assert_allclose([rewards[0], rewards[7]], expected, atol=1e-5)
    messages = [record.message for record in transformers_log.records]
    assert len(messages) == 6 and messages[2].startswith("clip 3 of the batch gets the reward nan: no audio file at")


def test_the_fallback_can_be_chosen_and_the_model_shared(reward):
    other = AlignmentReward(reward.scorer, fallback=0.0)
    assert other.scorer is reward.scorer and isinstance(other.scorer, Scorer)
    assert other(["Rain"], ["missing.wav"]) == [0.0]


def test_trl_can_call_it(reward):
    """As TRL's GRPOTrainer does: by keyword, with its own extras, None and NaN meaning no reward, logged by `__name__`."""
    columns = {"completion_ids": [[1], [2]], "trainer_state": object(), "difficulty": ["low", "high"]}
    rewards = reward(prompts=PROMPTS[:2], completions=[WAVES[0], np.zeros(0)], **columns)
    rewards = torch.tensor([torch.nan if value is None else value for value in rewards])
    assert rewards[0] == pytest.approx(reward(PROMPTS[:1], WAVES[:1])[0]) and rewards[1].isnan()
    assert reward.__name__ == "alignment_reward" and callable(reward)


def test_conversations_are_read(reward):
    said = {"role": "assistant", "content": "Which sound?"}
    parts = {"role": "user", "content": [{"type": "image", "image": None}, {"type": "text", "text": PROMPTS[0]}]}
    prompts = [[{"role": "user", "content": "Hello"}, said, {"role": "user", "content": PROMPTS[0]}], [parts, said], PROMPTS[0]]
    rewards = reward(prompts, [WAVES[0]] * 3)
    np.testing.assert_allclose(rewards, reward(PROMPTS[:1], WAVES[:1]) * 3, atol=1e-5)
    with pytest.raises(ValueError, match="messages of which one is a user's text, got"):
        reward([[said]], WAVES[:1])


def test_wrong_calls_are_explained(reward):
    with pytest.raises(ValueError, match="as many audios, got 1"):
        reward(PROMPTS, WAVES[:1])
    with pytest.raises(ValueError, match="got none"):
        reward(PROMPTS)
    with pytest.raises(ValueError, match="a list of prompts"):
        reward("Rain", WAVES)
