"""The feature cache: what it returns, when it recomputes, and what a killed writer leaves."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile as sf
import torch

from xacle.core.clips import Share, hash_clips
from xacle.demo.tiny_models import CAPTIONS, make_sound
from xacle.train.clip_features import CHUNK, UndecodableClipsError, cache_features, compute_features
from xacle.train.feature_cache import FeatureCache


@pytest.fixture
def clips(tmp_path):
    """40 short clips on disk, by index; 2 chunks and a half."""
    folder = tmp_path / "wav"
    folder.mkdir()
    audio = {}
    for index in range(40):
        audio[index] = folder / f"{index}.wav"
        sound = (1 - index / 50) * make_sound(list(CAPTIONS)[index % 4], 1.0)
        sf.write(audio[index], sound, 16000)
    return audio


@pytest.fixture
def encoder(make_scorer):
    """A tiny scorer that counts the clips its encoder sees."""
    model = make_scorer(0).eval()
    model.encoded = 0

    def count(module, args, kwargs=None):
        model.encoded += len(args[0])

    model.model.audio_tower.register_forward_pre_hook(count)
    return model


@pytest.mark.parametrize("kind", ["audio_states", "fbank"])
def test_cached_features_are_the_computed_ones(kind, clips, encoder, processor, tmp_path):
    features = cache_features(kind, clips, processor, tmp_path / "cache", encoder)
    for clip in (0, 17, 39):
        waveform = sf.read(clips[clip], dtype="float32")[0]
        torch.testing.assert_close(features[clip], compute_features(kind, [waveform], processor, encoder)[0], rtol=0, atol=1e-5)
    assert features[0].dtype == torch.float32


def test_half_precision_takes_half_the_disk(clips, encoder, processor, tmp_path):
    exact = cache_features("audio_states", clips, processor, tmp_path / "cache", encoder)
    half = cache_features("audio_states", clips, processor, tmp_path / "cache", encoder, dtype="float16")
    torch.testing.assert_close(half[5], exact[5], rtol=1e-3, atol=1e-3)
    sizes = [sum(file.stat().st_size for file in features.cache.folder.glob("*.bin")) for features in (exact, half)]
    assert sizes == [40 * 100 * 48 * 4, 40 * 100 * 48 * 2]


def test_what_is_cached_is_not_computed_again(clips, encoder, processor, tmp_path):
    cache_features("audio_states", clips, processor, tmp_path / "cache", encoder)
    assert encoder.encoded == 40
    more = {index: path for index, path in clips.items() if index % 2}
    again = cache_features("audio_states", more, processor, tmp_path / "cache", encoder, num_workers=2)
    assert encoder.encoded == 40 and sorted(again.digests) == sorted(more)


def test_the_number_of_workers_does_not_show(clips, encoder, processor, tmp_path):
    alone = cache_features("audio_states", clips, processor, tmp_path / "one", encoder)
    several = cache_features("audio_states", clips, processor, tmp_path / "two", encoder, num_workers=2)
    assert all(torch.equal(alone[clip], several[clip]) for clip in clips)


def test_building_a_cache_leaves_no_trace_in_the_random_numbers(clips, encoder, processor, tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    cache_features("audio_states", clips, processor, tmp_path / "cache", encoder)
    assert torch.equal(torch.rand(3), expected)


def test_a_changed_file_is_computed_anew(clips, encoder, processor, tmp_path):
    before = cache_features("audio_states", clips, processor, tmp_path / "cache", encoder)
    old = before[3].clone()
    stat = clips[3].stat()
    sf.write(clips[3], 0.5 * make_sound("engine", 1.0), 16000)  # as long as before
    os.utime(clips[3], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # and as old
    after = cache_features("audio_states", clips, processor, tmp_path / "cache", encoder)
    assert encoder.encoded == 40 + CHUNK and not torch.equal(after[3], old)
    assert torch.equal(after[4], before[4])


@pytest.mark.parametrize(
    "change",
    [
        lambda model, processor: model.model.audio_tower.encoder.layers[0].fc1.bias.data.add_(0.1),
        lambda model, processor: setattr(model.config, "audio_pooling", "time"),
        lambda model, processor: setattr(model.config.audio_config, "max_bucket_distance", 700),
        lambda model, processor: setattr(processor.feature_extractor, "fbank_mean", 15.0),
    ],
    ids=["weights", "pooling", "encoder setting", "front end"],
)
def test_a_changed_encoder_or_front_end_is_computed_anew(change, clips, encoder, processor, tmp_path, monkeypatch):
    cache_features("audio_states", clips, processor, tmp_path / "cache", encoder)
    monkeypatch.setattr(processor.feature_extractor, "fbank_mean", processor.feature_extractor.fbank_mean)  # put back later
    change(encoder, processor)
    cache_features("audio_states", clips, processor, tmp_path / "cache", encoder)
    assert encoder.encoded == 80


def test_training_the_rest_of_the_model_keeps_the_cache(clips, encoder, processor, tmp_path):
    cache_features("audio_states", clips, processor, tmp_path / "cache", encoder)
    encoder.score_head.out_proj.weight.data += 1
    encoder.model.multi_modal_projector.blocks[0].fc1.weight.data += 1
    cache_features("audio_states", clips, processor, tmp_path / "cache", encoder)
    assert encoder.encoded == 40


def test_clips_that_cannot_be_decoded_are_all_named_and_the_others_kept(clips, encoder, processor, tmp_path):
    for clip in (7, 30):
        clips[clip].write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(UndecodableClipsError, match=r"(?s)cannot be decoded: 2.*7\.wav.*30\.wav") as error:
            cache_features("audio_states", clips, processor, tmp_path / "cache", encoder)
        assert sorted(error.value.errors) == [7, 30]
    kept = {clip: path for clip, path in clips.items() if clip not in (7, 30)}
    encoder.encoded = 0
    cache_features("audio_states", kept, processor, tmp_path / "cache", encoder)
    assert encoder.encoded == 0


def test_urls_are_refused(tmp_path):
    with pytest.raises(ValueError, match="download the clips"):
        hash_clips({0: "https://example.org/a.wav"})


KILLED_WRITER = """
import os, signal, sys
import numpy as np
from pathlib import Path
from xacle.train.feature_cache import FeatureCache
cache = FeatureCache(Path(sys.argv[1]), (50, 20))
writer = cache.writer()
for chunk in range(3):
    writer.write([f"{chunk}-{clip}" for clip in range(4)], np.full((4, 50, 20), chunk, np.float32))
if sys.argv[2] == "features":  # killed while it wrote the features of the next chunk
    writer.features.write(np.ones(1234, np.float32).tobytes())
    writer.features.flush()
else:  # killed while it wrote the line that says whose they are
    writer.features.write(np.full((4, 50, 20), 3, np.float32).tobytes())
    writer.features.flush()
    writer.index.write(b'{"first": 12, "clips": ["3-0", "3-')
    writer.index.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["features", "line"])
def test_a_killed_writer_leaves_nothing_that_reads_as_good(moment, tmp_path):
    result = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(tmp_path / "cache"), moment], check=False)
    assert result.returncode == -signal.SIGKILL
    cache = FeatureCache(tmp_path / "cache", (50, 20))
    assert len(cache) == 12 and "3-0" not in cache
    assert all((cache.read(f"{chunk}-{clip}") == chunk).all() for chunk in range(3) for clip in range(4))
    writer = cache.writer()  # and the next one is not in its way
    writer.write(["3-0"], np.full((1, 50, 20), 9, np.float32))
    writer.close()
    cache.refresh()
    assert (cache.read("3-0") == 9).all() and len(cache) == 13


def test_lost_features_are_not_read(tmp_path):
    cache = FeatureCache(tmp_path / "cache", (4,))
    writer = cache.writer()
    writer.write(["a", "b"], np.ones((2, 4), np.float32))
    writer.close()
    file = next((tmp_path / "cache").glob("*.bin"))
    file.write_bytes(file.read_bytes()[:-1])
    assert "a" in FeatureCache(tmp_path / "cache", (4,)) and "b" not in FeatureCache(tmp_path / "cache", (4,))


def test_an_interrupted_cache_goes_on_with_the_same_numbers(clips, encoder, processor, tmp_path, monkeypatch):
    whole = cache_features("audio_states", clips, processor, tmp_path / "whole", encoder)
    from xacle.train import clip_features

    compute, calls = clip_features.compute_features, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(*args)

    monkeypatch.setattr(clip_features, "compute_features", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache_features("audio_states", clips, processor, tmp_path / "cache", encoder)
    monkeypatch.setattr(clip_features, "compute_features", compute)
    encoder.encoded = 0
    resumed = cache_features("audio_states", clips, processor, tmp_path / "cache", encoder)
    assert encoder.encoded == 8  # the last, shorter chunk
    assert all(torch.equal(resumed[clip], whole[clip]) for clip in clips)


def test_two_processes_share_the_work(clips, processor, tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    barrier, found = Barrier(2), {}

    class Thread(Share):
        def gather(self, item):
            found[self.index] = item
            barrier.wait()
            items = [found[0], found[1]]
            barrier.wait()
            return items

    def one(index):
        return cache_features("fbank", clips, processor, tmp_path / "cache", share=Thread(index, 2))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(one, range(2))
    assert all(torch.equal(first[clip], second[clip]) for clip in clips)
    assert len(list(first.cache.folder.glob("*.bin"))) == 2 and len(first.cache) == 40
    hashed = [len(file.read_text().splitlines()) for file in (tmp_path / "cache").glob("hashes-*.jsonl")]
    assert hashed == [20, 20]  # no clip is read twice


def test_a_cache_that_is_not_shared_is_reported(clips, processor, tmp_path):
    class Elsewhere(Share):  # another machine, whose share never shows up in this folder
        def gather(self, item):
            if isinstance(item, dict) and item and isinstance(next(iter(item.values())), str):
                return [hash_clips(clips)]
            return [item, {} if isinstance(item, dict) else None]

    with pytest.raises(ValueError, match="must be on a file system that all machines share"):
        cache_features("fbank", clips, processor, tmp_path / "cache", share=Elsewhere(0, 2))
