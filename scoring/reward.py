"""The score as a reward for reinforcement learning of text-to-audio generators."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers.utils import logging

from xacle.audio_xacle import SAMPLING_RATE
from xacle.core.clips import with_rate
from xacle.scoring.scorer import Scorer, load_scorer

logger = logging.get_logger(__name__)


class AlignmentReward:
    """
    A reward function in the style of TRL's trainers: `reward(prompts, audios, **columns) -> list[float]`.

    ```python
    reward = AlignmentReward("path/or/hub-id", device="cuda")
    reward(["A dog barks", "Rain falls"], [waveform, "rain.wav"], sampling_rate=44100)  # e.g. [7.9, 3.1]
    ```

    Rewards are ratings on the 0-10 scale (of a CLAP, cosines), the same as [`Scorer`] gives a pair alone, without gradients.

    Args:
        model: Folder or Hub id of a scorer or any CLAP, or a [`Scorer`] that is loaded already.
        device, dtype: See [`Scorer.from_pretrained`].
        sampling_rate: Of clips that are arrays or tensors, in Hz, unless a call says otherwise.
        fallback: The reward of a clip that cannot be scored (empty, NaN, damaged or missing), which also logs a warning. NaN
            is what TRL turns `None`, its "no reward", into: the clip gets none from this function. Where it is the only
            reward function, TRL sums nothing to 0, the bottom of the scale. Trainers that do not know NaN need a number,
            say 0.
        batch_size, window: See [`Scorer.score`].
    """

    def __init__(
        self,
        model: str | Path | Scorer,
        device: str | None = None,
        dtype: str = "float32",
        sampling_rate: int = SAMPLING_RATE,
        fallback: float = math.nan,
        batch_size: int | str = "auto",
        window: str = "mean",
    ):
        self.scorer = model if isinstance(model, Scorer) else load_scorer(model, device, dtype)
        self.sampling_rate = sampling_rate
        self.fallback = fallback
        self.batch_size, self.window = batch_size, window
        self.__name__ = "alignment_reward"  # TRL logs a function's rewards under its name

    def __call__(
        self,
        prompts: Sequence,
        audios: Sequence | None = None,
        sampling_rate: int | Sequence[int] | None = None,
        completions: Sequence | None = None,
        **columns,
    ) -> list[float]:
        """
        Args:
            prompts: The captions that the clips were made for; of conversations (lists of messages with `role` and `content`),
                the last message of the user is taken.
            audios: A clip for each: a tensor or array `[samples]` or `[channels, samples]` on any device, or whatever else
                [`load_waveform`] takes (paths, bytes, dicts with their own `sampling_rate`).
            sampling_rate: Of arrays and tensors, in Hz: one, or one a clip.
            completions: TRL's name for what was generated: the clips, if `audios` is not given.
            columns: Further columns of the data set, which TRL passes along; ignored.

        Returns:
            A reward for each pair, in order.

        Raises:
            ValueError: if there are not as many clips (or rates) as prompts, or a conversation has no text of a user. Single
                bad pairs raise nothing, see `fallback`.
        """
        clips = completions if audios is None else audios
        if clips is None or isinstance(prompts, str) or len(clips) != len(prompts):
            given = "none" if clips is None else len(clips)
            raise ValueError(f"pass a list of prompts and as many audios, got {given} for {prompts!r:.200}")
        rates = self.sampling_rate if sampling_rate is None else sampling_rate
        rates = [rates] * len(clips) if np.ndim(rates) == 0 else np.asarray(rates).tolist()  # a tensor's as numbers
        if len(rates) != len(clips):
            raise ValueError(f"pass one sampling_rate, or one a clip, got {len(rates)} for {len(clips)} clips")
        prompts = [_caption(prompt) for prompt in prompts]
        pairs = [(with_rate(clip, rate), prompt) for clip, rate, prompt in zip(clips, rates, prompts, strict=True)]
        rewards = []
        for number, result in enumerate(self.scorer.score_each(pairs, self.batch_size, self.window)):
            if result.error is not None:
                logger.warning(f"clip {number} of the batch gets the reward {self.fallback}: {result.error}")
            rewards.append(self.fallback if result.error is not None else float(result.score))
        return rewards


def _caption(prompt):
    """The text of a conversation's last message by the user; other prompts as they are."""
    if not isinstance(prompt, list):
        return prompt
    messages = [message for message in prompt if isinstance(message, dict) and message.get("role") == "user"]
    content = messages[-1].get("content") if messages else None
    if isinstance(content, list):  # of parts: text, images, sounds
        content = " ".join(part.get("text", "") for part in content if part.get("type") == "text")
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"a prompt must be a caption, or messages of which one is a user's text, got {prompt!r:.200}")
    return content
