"""`xacle pseudo-label`: a table of captioned clips in, the rows of stage 2 out, labeled by a CLAP teacher.

Every distinct clip and caption is embedded once, into a [`FeatureCache`] that survives a killed job; a row's label is the dot
product of two embeddings.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from xacle.clap.encoder import ClapEncoder
from xacle.core.clips import content_digest, hash_clips
from xacle.core.columns import FILE_COLUMNS, PSEUDO_LABEL_COLUMNS, TEXT_COLUMNS
from xacle.core.provenance import sources_of, write_teacher_sources
from xacle.core.tables import TableError, check_output, rejected_file, write_problems, write_rows
from xacle.train.clip_features import errors_of_clips
from xacle.train.data import PairTable, read_table
from xacle.train.feature_cache import FeatureCache, fill_cache, first_of_each
from xacle.train.negatives import NEGATIVES_PER_PAIR, Negatives, draw_negatives

COLUMNS = (FILE_COLUMNS[0], TEXT_COLUMNS[0], PSEUDO_LABEL_COLUMNS[0], "is_negative")
BLOCK = 2048  # true pairs whose rows are made and written at once


@dataclass
class PseudoLabels:
    """What was written: rows in all, mismatched ones among them, and rows of the input that were left out."""

    rows: int
    negatives: int
    rejected: int


def pseudo_label(
    teacher: str | Path | ClapEncoder,
    table: Path,
    output: Path,
    audio_dir: Path | None = None,
    *,
    negatives_per_pair: float = NEGATIVES_PER_PAIR,
    replace_audio: float = 0.5,
    seed: int = 0,
    batch_size: int = 32,
    device: str | None = None,
    on_error: str = "stop",
    feature_cache: Path = Path("feature_cache"),
    num_workers: int = 0,
) -> PseudoLabels:
    """Label every pair of `table`, and mismatched pairs made of them, and write `output`.

    Args:
        teacher: A [`ClapEncoder`], or what [`ClapEncoder.from_pretrained`] takes.
        table: `.csv` or `.jsonl` with `wav_file_name` and `text`.
        output: `.csv` or `.jsonl` to write, see [`write_pseudo_labels`].
        audio_dir: Where the files are; the table's own folder by default.
        negatives_per_pair, replace_audio, seed: See [`draw_negatives`].
        batch_size: Clips or captions embedded at once.
        on_error: `"stop"` raises on rows that cannot be used; `"skip"` leaves them out and writes them, with line numbers and
            reasons, to `<output>.rejected.csv`.
        feature_cache: Folder for the embeddings.
        num_workers: Processes that decode files.

    Raises:
        TableError: see `on_error`. Clips that only turn out to be damaged when they are decoded are reported once all others
            are embedded.
        FileNotFoundError, ValueError: for a table, output, teacher or number that cannot be used.
    """
    table, output, feature_cache = Path(table), Path(output), Path(feature_cache)
    rejected = rejected_file(output)
    for written in (output, rejected):
        check_output(written, [table])
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    pairs = read_table(table, audio_dir, "caption", on_error=on_error, audio_dir_option="--audio-dir")
    if not isinstance(teacher, ClapEncoder):
        teacher = ClapEncoder.from_pretrained(teacher, device)
    feature_cache.mkdir(parents=True, exist_ok=True)

    hashes = hash_clips(pairs.used_audio, feature_cache)
    clips, errors = embed_clips(teacher, pairs.used_audio, hashes, feature_cache, batch_size, num_workers)
    pairs = pairs.without_clips(errors)
    problems = pairs.problems
    if errors and on_error == "stop":
        advice = "nothing was labeled; fix them, or pass --on-error skip to leave them out"
        raise TableError(table, problems, advice, use="labeled")
    rejected.unlink(missing_ok=True)  # an earlier run's
    if problems:
        write_problems(rejected, problems)
    if not len(pairs):
        raise TableError(table, problems, f"no row can be labeled; all are listed in {rejected}", use="labeled")
    texts = embed_captions(teacher, pairs.captions, feature_cache, batch_size)
    # Clips that no pair refers to have no hash; a name of their own keeps them apart.
    contents = [hashes.get(clip, f"unused {clip}") for clip in range(len(pairs.clips))]
    negatives = draw_negatives(
        pairs.clip_index,
        pairs.caption_index,
        pairs.captions,
        negatives_per_pair=negatives_per_pair,
        replace_audio=replace_audio,
        seed=seed,
        clip_hashes=contents,
    )
    write_pseudo_labels(output, pairs, negatives, clips, texts)
    name = teacher.model.name_or_path or teacher.model.config.model_type
    write_teacher_sources(output, sources_of(teacher.model.config.to_dict(), "teacher", name))
    return PseudoLabels(len(pairs) + len(negatives), len(negatives), len(problems))


def write_pseudo_labels(
    output: Path, pairs: PairTable, negatives: Negatives, audio_embeddings: np.ndarray, text_embeddings: np.ndarray
) -> None:
    """Write `wav_file_name,text,clap_score,is_negative`: each true pair, followed by the mismatched pairs made from it.

    The file appears when it is complete.

    Args:
        output: `.csv` or `.jsonl`.
        audio_embeddings, text_embeddings: Of `pairs.clips` and `pairs.captions`, `[clips, size]` and `[captions, size]`, of
            length 1; arrays or memory maps.
    """

    def rows() -> Iterator[tuple[str, str, np.float32, int]]:
        progress = tqdm(total=len(pairs), desc=f"writing {output.name}", unit=" pairs")
        for start in range(0, len(pairs), BLOCK):
            true = np.arange(start, min(start + BLOCK, len(pairs)), dtype=np.int32)
            made = slice(*np.searchsorted(negatives.pair, (start, start + BLOCK)))
            order = np.argsort(np.concatenate([true, negatives.pair[made]]), kind="stable")
            clip = np.concatenate([pairs.clip_index[true], negatives.clip_index[made]])[order]
            caption = np.concatenate([pairs.caption_index[true], negatives.caption_index[made]])[order]
            audio = np.asarray(audio_embeddings[clip], dtype=np.float32)
            text = np.asarray(text_embeddings[caption], dtype=np.float32)
            scores = np.einsum("nd,nd->n", audio, text).clip(-1.0, 1.0)  # rounding can lead beyond 1
            names = [pairs.clips[index] for index in clip.tolist()]
            captions = [pairs.captions[index] for index in caption.tolist()]
            yield from zip(names, captions, scores, (order >= len(true)).astype(int).tolist(), strict=True)
            progress.update(len(true))
        progress.close()

    write_rows(output, COLUMNS, rows())


# --- Embeddings ----------------------------------------------------------------------------------------------------------


def embed_clips(
    teacher: ClapEncoder,
    audio: dict[int, object],
    hashes: dict[int, str],
    folder: Path,
    batch_size: int = 32,
    num_workers: int = 0,
) -> tuple[np.ndarray, dict[int, Exception]]:
    """The embeddings of clips, computed where the cache does not have them.

    Args:
        audio: What `load_waveform` takes, by the clip's index.
        hashes: Their contents, see [`hash_clips`]; equal ones are embedded once.

    Returns:
        `[largest index + 1, size]`, a row a clip, and the errors of clips that cannot be decoded, by index; those have zeros.
    """
    cache = FeatureCache(folder / f"clap-audio-{teacher.fingerprint()}", (teacher.embedding_size,))
    errors = fill_cache(
        cache,
        {digest: audio[clip] for digest, clip in first_of_each(hashes).items()},
        teacher.embed_audio_inputs,
        batch_size,
        load=teacher.front_end.load,
        prepare=teacher.front_end.audio_inputs,
        workers=num_workers,
        title="embedding clips",
    )
    return _gather(cache, hashes, folder), errors_of_clips(errors, hashes, audio)


def embed_captions(teacher: ClapEncoder, captions: list[str], folder: Path, batch_size: int = 32) -> np.ndarray:
    """The embeddings of captions, `[captions, size]`, computed where the cache does not have them."""
    cache = FeatureCache(folder / f"clap-text-{teacher.fingerprint()}", (teacher.embedding_size,))
    hashes = {number: content_digest(text.encode()) for number, text in enumerate(captions)}
    text_of = {digest: captions[number] for number, digest in hashes.items()}
    by_length = sorted(text_of.items(), key=lambda item: (len(item[1]), item[0]))
    fill_cache(cache, dict(by_length), teacher.embed_text, batch_size, title="embedding captions")
    return _gather(cache, hashes, folder)


def _gather(cache: FeatureCache, hashes: dict[int, str], folder: Path) -> np.ndarray:
    """A memory map of the embeddings by index; zeros where there is none."""
    rows = max(hashes) + 1
    with tempfile.TemporaryFile(dir=folder) as file:  # lives as long as its map
        embeddings = np.memmap(file, cache.dtype, mode="w+", shape=(rows, *cache.shape))
    for index, digest in hashes.items():
        if digest in cache:
            embeddings[index] = cache.read(digest)
    return embeddings
