"""Mismatched pairs: as many as asked for, none of them true, none twice, the same every time."""

import numpy as np
import pytest

from xacle.train.negatives import draw_negatives, normalize_caption


def keys(clips, captions):
    return clips.astype(np.int64) * 10**6 + captions


def plain_table(pairs, seed=0, captions_per_clip=5):
    """Every clip has several captions, as in AudioCaps' test set or Clotho."""
    generator = np.random.default_rng(seed)
    clips = np.repeat(np.arange(-(-pairs // captions_per_clip)), captions_per_clip)[:pairs]
    return generator.permutation(clips), np.arange(pairs), [f"caption {number}" for number in range(pairs)]


def test_the_papers_million():
    clips, captions, texts = plain_table(273_000)
    captions = captions // 2  # and every caption two clips
    negatives = draw_negatives(clips, captions, texts, 2.9)
    assert len(clips) + len(negatives) == 1_064_700
    drawn = keys(negatives.clip_index, negatives.caption_index)
    assert len(np.unique(drawn)) == len(drawn)
    assert not np.isin(drawn, keys(clips, captions)).any()
    assert {array.dtype for array in (negatives.pair, negatives.clip_index, negatives.caption_index)} == {np.dtype(np.int32)}

    assert (np.diff(negatives.pair) >= 0).all()
    assert np.bincount(np.bincount(negatives.pair)).tolist() == [0, 0, 27_300, 245_700]  # two or three each
    keeps_caption = negatives.caption_index == captions[negatives.pair]
    keeps_clip = negatives.clip_index == clips[negatives.pair]
    assert (keeps_caption ^ keeps_clip).all()
    assert abs(keeps_caption.mean() - 0.5) < 1e-4
    for side in (True, False):  # replacements come from everywhere
        assert len(np.unique(negatives.clip_index[keeps_caption == side])) > 0.98 * 54_600


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_replaced_clips(share):
    clips, captions, texts = plain_table(1000)
    negatives = draw_negatives(clips, captions, texts, 2, share)
    assert np.bincount(negatives.pair).tolist() == [2] * 1000
    assert (negatives.caption_index == captions[negatives.pair]).mean() == share


def test_the_same_seed_gives_the_same_pairs():
    table = plain_table(500)
    first, second, other = (draw_negatives(*table, seed=seed) for seed in (3, 3, 4))
    for field in ("pair", "clip_index", "caption_index"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
    assert not np.array_equal(first.clip_index, other.clip_index)
    # Known values: a changed stream would change every run made before.
    assert draw_negatives(*plain_table(5, captions_per_clip=1), 1).clip_index.tolist() == [2, 0, 3, 3, 1]


def test_captions_are_compared_as_texts():
    variants = ["A dog barks", "a dog  barks.", " A DOG BARKS !", "A\u00a0dog barks", "a dog\nbarks..."]
    assert {normalize_caption(text) for text in variants} == {"a dog barks"}
    assert normalize_caption("A dog, a cat") != normalize_caption("A dog a cat")
    # Clips 0 to 4 have the dog in one writing each, clips 5 to 9 captions of their own.
    captions = [*variants, *(f"sound {number}" for number in range(5))]
    index = np.arange(10)
    negatives = draw_negatives(index, index, captions, 5)  # of 10 * 6 - 10 possible ones
    dog = negatives.caption_index < 5
    assert dog.any() and (negatives.clip_index[dog] >= 5).all()
    text = np.minimum(negatives.caption_index, 4)  # by text, none twice
    text[~dog] = negatives.caption_index[~dog]
    assert len(np.unique(keys(negatives.clip_index, text))) == 50


def test_clips_of_equal_content_are_one_clip():
    index, captions = np.arange(8), [f"sound {number}" for number in range(8)]
    hashes = ["same", "same", *map(str, range(6))]
    negatives = draw_negatives(index, index, captions, 6, clip_hashes=hashes)  # of 7 * 8 - 8 possible ones
    assert len(negatives) == 48
    clip = np.where(negatives.clip_index == 1, 0, negatives.clip_index)
    assert not ((clip == 0) & (negatives.caption_index < 2)).any()
    assert len(np.unique(keys(clip, negatives.caption_index))) == 48


def test_every_mismatched_pair_can_be_asked_for_and_not_one_more():
    index, captions = np.arange(20), [f"sound {number}" for number in range(20)]
    for share in (0.0, 0.5, 1.0):
        negatives = draw_negatives(index, index, captions, 19, share)
        drawn = keys(negatives.clip_index, negatives.caption_index)
        assert len(np.unique(drawn)) == 380 and (negatives.clip_index != negatives.caption_index).all()
    with pytest.raises(ValueError, match=r"20 clips and 20 captions have 380 distinct .* 382 are wanted; .* 19\.00"):
        draw_negatives(index, index, captions, 19.1)
    with pytest.raises(ValueError, match="0 distinct mismatched pairs"):
        draw_negatives([0, 1], [0, 1], ["Rain", "rain."], 1)


def test_pairs_that_match_nearly_everything():
    """One caption is true for all of many clips: only other captions can replace it."""
    clips = np.concatenate([np.arange(2000), np.arange(2000)])
    captions = np.concatenate([np.zeros(2000, int), np.arange(1, 2001)])
    texts = ["music", *(f"caption {number}" for number in range(2000))]
    negatives = draw_negatives(clips, captions, texts, 2.9)
    assert len(negatives) == 11_600 and (negatives.caption_index != 0).all()
    assert not np.isin(keys(negatives.clip_index, negatives.caption_index), keys(clips, captions)).any()
    with pytest.raises(ValueError, match=r"go with nearly everything; lower --negatives-per-pair, or --replace-audio"):
        wide = np.arange(5000)
        draw_negatives(
            np.concatenate([wide, wide]), np.concatenate([0 * wide, wide + 1]), [str(n) for n in range(5001)], 1, 1.0
        )


def test_senseless_arguments_are_refused():
    for arguments in ([0], [], ["a"]), ([], [], []), ([0], [0], ["a"], -1), ([0], [0], ["a"], 1, 1.5):
        with pytest.raises(ValueError, match=r"needs as many|must not be negative"):
            draw_negatives(*arguments)
    assert len(draw_negatives([0], [0], ["a"], 0)) == 0
