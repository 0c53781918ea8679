"""Mismatched pairs for stage 2: in a copy of a true pair, the clip or the caption is replaced by another pair's.

The paper (arXiv 2602.00604) makes 1,064K rows of 273K true pairs, 2.9 mismatched ones for each. It does not say how they are
drawn; here a replacement comes from a random other row, and a mismatched pair is never a true one and never comes twice.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NEGATIVES_PER_PAIR = 2.9
TRAILING_PUNCTUATION = " .,;:!?"
ROUNDS = 64  # of drawing anew what was refused; in the second half, the side to replace as well
MAX_ENUMERATED = 2**24  # possible pairs that are listed one by one if drawing does not find the last ones


@dataclass
class Negatives:
    """
    Mismatched pairs, in the order of the true pairs they were made from.

    Args:
        pair: `[negatives]` int32, the true pair, ascending.
        clip_index, caption_index: `[negatives]` int32. One of the two is the true pair's (neither, where a small table has
            no other mismatched pair left).
    """

    pair: np.ndarray
    clip_index: np.ndarray
    caption_index: np.ndarray

    def __len__(self) -> int:
        return len(self.pair)


def normalize_caption(caption: str) -> str:
    """What captions are compared by: no case, single spaces, no punctuation at the end."""
    return " ".join(unicodedata.normalize("NFKC", caption).casefold().split()).rstrip(TRAILING_PUNCTUATION)


def draw_negatives(
    clip_index: np.ndarray,
    caption_index: np.ndarray,
    captions: Sequence[str],
    negatives_per_pair: float = NEGATIVES_PER_PAIR,
    replace_audio: float = 0.5,
    seed: int = 0,
    clip_hashes: Sequence[str] | None = None,
) -> Negatives:
    """
    A pair counts as true if any row joins the same clip with the same caption text ([`normalize_caption`]): a caption that
    several clips have is true for each of them.

    Args:
        clip_index, caption_index: `[pairs]`, the true pairs.
        captions: The texts that `caption_index` counts.
        negatives_per_pair: Mismatched pairs a true pair; of 2.9, every pair gets two and nine tenths of them a third.
        replace_audio: Share of the mismatched pairs whose clip is replaced; in the others it is the caption.
        seed: Equal arguments give equal pairs.
        clip_hashes: The content of each clip `clip_index` counts; clips of equal content are one clip.

    Raises:
        ValueError: if the arguments make no sense, or there are not as many distinct mismatched pairs.
    """
    if len(clip_index) != len(caption_index) or not len(clip_index):
        raise ValueError(f"needs as many clips as captions, at least one: got {len(clip_index)} and {len(caption_index)}")
    if negatives_per_pair < 0 or not 0 <= replace_audio <= 1:
        raise ValueError(
            "negatives_per_pair must not be negative and replace_audio be from 0 to 1, got "
            f"{negatives_per_pair} and {replace_audio}"
        )
    pairs = len(clip_index)
    clip_index, caption_index = np.asarray(clip_index, np.int64), np.asarray(caption_index, np.int64)
    clip_of_row = clip_index if clip_hashes is None else _number(clip_hashes)[clip_index]
    text_of_row = _number([normalize_caption(caption) for caption in captions])[caption_index]
    keys = _Keys(clip_of_row, text_of_row)

    count = round(negatives_per_pair * pairs)
    if count > keys.mismatched:
        raise ValueError(
            f"{pairs} pairs of {len(keys.clips)} clips and {len(keys.texts)} captions have {keys.mismatched} distinct "
            f"mismatched pairs, and {count} are wanted; lower --negatives-per-pair to {keys.mismatched / pairs:.2f} or less"
        )
    generator = np.random.Generator(np.random.PCG64(seed))
    more = np.sort(generator.permutation(pairs)[: count % pairs])  # the pairs that get one more than others
    source = np.sort(np.concatenate([np.repeat(np.arange(pairs), count // pairs), more]))
    replaces_clip = generator.permutation(count) < round(replace_audio * count)

    clip_row, text_row = source.copy(), source.copy()  # the rows that clip and caption are taken from
    pending, taken = np.arange(count), np.empty(0, np.int64)
    for attempt in range(ROUNDS):
        if not len(pending):
            break
        other = generator.integers(pairs, size=len(pending))
        side = replaces_clip[pending] if attempt < ROUNDS // 2 else generator.random(len(pending)) < replace_audio
        clips, texts = np.where(side, other, source[pending]), np.where(side, source[pending], other)
        drawn = keys.of(clip_of_row[clips], text_of_row[texts])
        first = np.zeros(len(drawn), dtype=bool)
        first[np.unique(drawn, return_index=True)[1]] = True
        good = first & ~_among(drawn, keys.true) & ~_among(drawn, taken)
        clip_row[pending[good]], text_row[pending[good]] = clips[good], texts[good]
        taken = np.sort(np.concatenate([taken, drawn[good]]))
        pending = pending[~good]
    if len(pending):  # nearly every mismatched pair is wanted, or some pairs match nearly everything
        clip_row[pending], text_row[pending] = keys.draw_others(taken, len(pending), generator)
    return Negatives(*(index.astype(np.int32) for index in (source, clip_index[clip_row], caption_index[text_row])))


def _number(names: Sequence[str]) -> np.ndarray:
    """Equal names get equal numbers."""
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(name, len(numbers)) for name in names), np.int64, len(names))


def _among(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Which `values` occur in an ascending array."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values


class _Keys:
    """Pairs of a clip and a caption text as single numbers."""

    def __init__(self, clip_of_row: np.ndarray, text_of_row: np.ndarray):
        self.clips, self.clip_rows = np.unique(clip_of_row, return_index=True)
        self.texts, self.text_rows = np.unique(text_of_row, return_index=True)
        self.width = int(text_of_row.max()) + 1
        self.true = np.unique(self.of(clip_of_row, text_of_row))
        self.mismatched = len(self.clips) * len(self.texts) - len(self.true)

    def of(self, clips: np.ndarray, texts: np.ndarray) -> np.ndarray:
        return clips * self.width + texts

    def draw_others(self, taken: np.ndarray, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Rows of `count` distinct clips and captions that are neither true nor taken, from the list of all."""
        if len(self.clips) * len(self.texts) > MAX_ENUMERATED:
            raise ValueError(
                f"no mismatched pairs were found for {count} rows: their clips or captions go with nearly everything; "
                "lower --negatives-per-pair, or --replace-audio if few captions are shared by most clips"
            )
        every = self.of(self.clips[:, None], self.texts).reshape(-1)
        left = np.flatnonzero(~_among(every, self.true) & ~_among(every, taken))
        chosen = generator.permutation(left)[:count]
        return self.clip_rows[chosen // len(self.texts)], self.text_rows[chosen % len(self.texts)]
