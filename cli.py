"""The one command, `xacle`: options in, one call each. Heavy imports wait until a sub-command needs them."""

import re
import sys
from enum import StrEnum
from importlib import import_module
from importlib.metadata import requires, version
from pathlib import Path
from typing import Annotated

import typer

STYLE = {"no_args_is_help": True, "rich_markup_mode": "markdown"}  # markdown wraps paragraphs
SCORE, COMPARE, TRAIN, START = "Score sounds", "Compare scores", "Train and publish", "Start"  # panels of `xacle --help`

app = typer.Typer(**STYLE, pretty_exceptions_enable=False, help="Scores how well a sound matches a caption (0-10).")
convert_app = typer.Typer(**STYLE, help="Convert released checkpoints into folders that transformers loads.")
train_app = typer.Typer(**STYLE, help="Train the paper's three stages, and their teacher.")


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    int8 = "int8"


class Window(StrEnum):
    mean = "mean"
    first = "first"


class OnError(StrEnum):
    stop = "stop"
    skip = "skip"


def print_version(wanted: bool):
    if wanted:
        typer.echo(version("xacle"))
        raise typer.Exit


def batch_size_of(given: str) -> int | str:
    if given != "auto" and not (given.isdecimal() and int(given) > 0):
        raise typer.BadParameter(f"must be 'auto' or a number from 1, got {given!r}")
    return given if given == "auto" else int(given)


def caption_of(given: str | None) -> str | None:
    if given is not None and not given.strip():
        raise typer.BadParameter("the caption is empty")
    return given


# Options that several commands have.
PLOT_SUFFIXES = (".png", ".pdf", ".svg")
Model = Annotated[str, typer.Option(help="Model folder or Hub id.")]
AnyModel = Annotated[str, typer.Option(help="Folder or Hub id of a scorer, or of any CLAP, whose scores are cosines.")]
Caption = Annotated[str, typer.Option(callback=caption_of, help="The caption.")]
AudioDir = Annotated[Path | None, typer.Option(help="Folder of the table's files; by default the table's own.")]
BatchSize = Annotated[
    str,
    typer.Option(
        parser=batch_size_of, metavar="auto|N", help="10 s windows scored at once; auto takes fewer when memory is short."
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps ...; the best there is by default.")]
Precision = Annotated[Dtype, typer.Option(help="Precision of the weights; int8 is for CPUs.")]
LongClips = Annotated[Window, typer.Option(help="Clips over 10 s: average of 10 s windows, or the first only.")]


def load_scorer(model: str, device: str | None, dtype: Dtype, compiled: bool = False):
    from xacle.core.loading import loading
    from xacle.scoring import load_scorer

    with loading(model, "--model"):
        return load_scorer(model, device, dtype.value, compiled)


@app.callback()
def options(
    _: Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")] = False,
):
    pass


@app.command("score", rich_help_panel=SCORE)
def score_command(
    model: AnyModel,
    audio: Annotated[str | None, typer.Option(help="One sound: a file or an http(s) URL.")] = None,
    text: Annotated[str | None, typer.Option(callback=caption_of, help="Its caption.")] = None,
    input: Annotated[
        list[str] | None,
        typer.Option(
            help="Pairs: a table (.csv, .jsonl) with wav_file_name and text, Parquet, WebDataset .tar files, or a folder of "
            "save_to_disk. Several files, and patterns, may be given."
        ),
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,  # --input shards/*.tar
    dataset: Annotated[
        str | None, typer.Option(help="Instead of --input: id of a data set on the Hub, which is streamed.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="The data set's split, e.g. train.")] = None,
    config: Annotated[str | None, typer.Option(help="The data set's configuration.")] = None,
    revision: Annotated[str | None, typer.Option(help="The data set's branch, tag or commit.")] = None,
    audio_dir: AudioDir = None,
    output: Annotated[
        Path | None, typer.Option(help="Where to write wav_file_name and pred_score (.csv, .jsonl, .parquet).")
    ] = None,
    audio_column: Annotated[
        str | None, typer.Option(help="Column of sounds or their names: wav_file_name, audio ... by default.")
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of captions: text or caption by default.")] = None,
    keep_columns: Annotated[
        str | None, typer.Option(metavar="all|A,B", help="Other columns to carry through; start and end always are.")
    ] = None,
    batch_size: BatchSize = "auto",
    device: Device = None,
    dtype: Precision = Dtype.float32,
    window: LongClips = Window.mean,
    on_error: Annotated[
        OnError,
        typer.Option(
            help="Rows that cannot be scored: stop (before any work; of what streams, at the first), or skip and list them in "
            "a file."
        ),
    ] = OnError.stop,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode the table's files; chosen by their number by default.")
    ] = None,
    num_shards: Annotated[int | None, typer.Option(min=1, help="Processes or machines that share the table.")] = None,
    shard: Annotated[int | None, typer.Option(min=0, help="The number of this one, from 0.")] = None,
    with_text: Annotated[
        bool, typer.Option("--with-text", help="Write the captions too, as is always done if clips have several.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the model first (minutes), with CUDA graphs on CUDA: for large tables.")
    ] = False,
):
    """Score one sound and caption, or a table of them.

    `xacle score --model DIR --audio dog.wav --text "A dog barks"`

    `xacle score --model DIR --input pairs.csv --audio-dir wav --output scores.csv`

    `xacle score --model DIR --input 'shards/*.tar' --output scores.parquet`

    `xacle score --model DIR --dataset me/ratings --split train --output scores.csv`

    An interrupted table continues where it stopped when the same command is given again.

    With `--num-shards` and `--shard`, or under torchrun or accelerate launch, each process scores a share of the clips and
    leaves it beside the output as OUTPUT.shard-I-of-N; the one that finishes last writes the output, in the table's order.
    """
    given = [option is not None for option in (audio, text, input or dataset, output)]
    if given not in ([True, True, False, False], [False, False, True, True]) or (input and dataset) or (more and not input):
        raise typer.BadParameter("pass either --audio and --text, or --input (or --dataset) and --output")
    skips = on_error if on_error is OnError.skip else None
    of_tables = {"audio-dir": audio_dir, "workers": workers, "num-shards": num_shards, "shard": shard, "on-error": skips}
    of_tables["with-text"] = with_text or None
    of_tables |= {"audio-column": audio_column, "text-column": text_column, "keep-columns": keep_columns}
    of_datasets = {"split": split, "config": config, "revision": revision}
    if audio is not None and (
        unused := [f"--{name}" for name, value in (of_tables | of_datasets).items() if value is not None]
    ):
        raise typer.BadParameter(f"only tables (--input) have {', '.join(unused)}")
    if dataset is None and (unused := [f"--{name}" for name, value in of_datasets.items() if value is not None]):
        raise typer.BadParameter(f"only data sets (--dataset) have {', '.join(unused)}")
    if (num_shards is None) != (shard is None):
        raise typer.BadParameter("pass both --num-shards and --shard, or neither")
    from xacle.scoring.malloc import keep_freed_memory

    keep_freed_memory()
    if audio is not None:
        from xacle.core.tables import check_sound, shortest

        check_sound(audio)
        scorer = load_scorer(model, device, dtype, compiled)
        typer.echo(shortest(scorer.score([audio], [text], batch_size, window.value)[0]))
        return

    from xacle.core.clips import Share
    from xacle.core.columns import ColumnNames
    from xacle.core.loading import loading
    from xacle.core.sources import HubDataset
    from xacle.core.tables import counted, rejected_file
    from xacle.scoring import ScoringOptions, score_table

    options = ScoringOptions(
        batch_size=batch_size,
        device=device,
        dtype=dtype.value,
        window=window.value,
        on_error=on_error.value,
        workers=workers,
        share=None if shard is None else Share(shard, num_shards),
        compiled=compiled,
        with_text=with_text,
        keep_columns=keep_columns if keep_columns == "all" else [name for name in (keep_columns or "").split(",") if name],
        names=ColumnNames(audio_column, text_column),
    )
    source = [*input, *(more or ())] if input else HubDataset(dataset, split, config, revision)
    try:
        with loading(model, "--model"):
            report = score_table(model, source, audio_dir, output, options)
    except KeyboardInterrupt as error:
        typer.secho(f"\n{str(error) or 'interrupted; nothing was scored'}", fg="red", err=True)
        raise typer.Exit(130) from error
    scored = f"{counted(report.scored, 'pair')} scored"
    if report.unfinished:
        others = ", ".join(map(str, report.unfinished))
        typer.echo(f"{scored}; {output} is written when shard {others} finishes as well", err=True)
        return
    typer.echo(f"{scored}: {output}", err=True)
    if report.rejected:
        typer.echo(f"{counted(report.rejected, 'row')} skipped, with reasons in {rejected_file(output)}", err=True)


@app.command("rank", rich_help_panel=SCORE)
def rank_command(
    sounds: Annotated[
        list[str], typer.Argument(help="Files, http(s) URLs, or folders (of which .wav, .flac, .ogg, .mp3; no sub-folders).")
    ],
    model: AnyModel,
    text: Caption,
    output: Annotated[Path | None, typer.Option(help="Write rank, wav_file_name, text, pred_score (.csv).")] = None,
    batch_size: BatchSize = "auto",
    device: Device = None,
    dtype: Precision = Dtype.float32,
    window: LongClips = Window.mean,
    on_error: Annotated[
        OnError, typer.Option(help="If some sounds cannot be scored: rank the others and fail, or rank them and succeed.")
    ] = OnError.stop,
):
    """Rank sounds by how well they match one caption: the best of N.

    `xacle rank --model DIR --text "A dog barks" take1.wav take2.wav take3.wav`

    `xacle rank --model DIR --text "A dog barks" takes/ --output ranked.csv`
    """
    from xacle.core.tables import check_output
    from xacle.scoring.ranking import best_of_n, ranking_table, sounds_of, write_ranking
    from xacle.scoring.score_files import write_sidecar

    check_output(output, suffixes=(".csv",))
    files = sounds_of(sounds)
    scorer = load_scorer(model, device, dtype)
    candidates = best_of_n(scorer, text, files, batch_size, window.value)
    failed = [candidate for candidate in candidates if candidate.error is not None]
    for candidate in failed:
        typer.secho(f"not ranked: {candidate.error}", fg="red", err=True)
    if len(failed) == len(candidates):
        raise ValueError("none of the sounds can be scored")
    typer.echo(ranking_table(files, candidates))
    if output is not None:
        write_ranking(output, text, files, candidates)
        write_sidecar(output, model, scorer.kind)
    if failed and on_error is OnError.stop:
        raise typer.Exit(1)


@app.command("explain", rich_help_panel=SCORE)
def explain_command(
    model: Model,
    audio: Annotated[str, typer.Option(help="The sound: a file or an http(s) URL.")],
    text: Caption,
    segment: Annotated[float, typer.Option(min=0.175, help="Length of the stretches that are silenced, in seconds.")] = 1.0,
    plot: Annotated[Path | None, typer.Option(help="Draw spectrogram and changes (.png, .pdf, .svg).")] = None,
    batch_size: BatchSize = "auto",
    device: Device = None,
    dtype: Precision = Dtype.float32,
    window: LongClips = Window.mean,
):
    """Show which words and which seconds a score rests on.

    `xacle explain --model DIR --audio dog.wav --text "A dog barks and rain falls" --plot explain.png`

    Each word, phrase (what commas and "and" separate) and stretch of the sound is taken away in turn, and the rest scored
    again. Where the score falls, the part that is missing spoke for the match.
    """
    from xacle.core.loading import loading
    from xacle.core.tables import check_output, check_sound
    from xacle.scoring import Scorer
    from xacle.scoring.explanation import explain, explanation_plot

    check_output(plot, suffixes=PLOT_SUFFIXES)
    check_sound(audio)
    with loading(model, "--model"):
        scorer = Scorer.from_pretrained(model, device, dtype.value)
    explanation = explain(scorer, audio, text, segment, batch_size, window.value)
    typer.echo(str(explanation))
    if plot is not None:
        explanation_plot(plot, explanation)


@app.command("evaluate", rich_help_panel=COMPARE)
def evaluate_command(
    tables: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCORES... [RATINGS]",
            help="Tables of scores (wav_file_name and pred_score), then, unless --ratings names it, the one of ratings.",
        ),
    ],
    ratings: Annotated[
        Path | None, typer.Option(help="Ratings: wav_file_name and average_score, or score of single listeners.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Results for each value of this column; by default model_id.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write metric,value rows (.csv), as the challenge's evaluator does.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw predictions against ratings (.png, .pdf, .svg).")] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples for the 95 % confidence intervals; 0 for none.")] = 1000,
):
    """Compare scores with human ratings: SRCC, LCC, KTAU and MSE, with confidence intervals.

    `xacle evaluate scores.csv ratings.csv --plot scatter.png`

    `xacle evaluate scores.csv clap_scores.csv --ratings ratings.csv`

    If the ratings have a column model_id, also a system at a time; --by names another column, of the ratings or the scores.
    Scores of a CLAP are no ratings: there is no MSE for them.
    """
    from xacle.core.tables import check_output
    from xacle.scoring.evaluation import evaluate_all, scatter_plot, side_by_side, write_evaluation

    if ratings is None and len(tables) < 2:
        raise typer.BadParameter("pass one or more tables of scores, and the table of ratings last or with --ratings")
    scores, rated = (tables, ratings) if ratings is not None else (tables[:-1], tables[-1])
    check_output(output, [*scores, rated], (".csv",))
    check_output(plot, suffixes=PLOT_SUFFIXES)
    evaluations = evaluate_all(scores, rated, bootstrap, by)
    typer.echo(str(evaluations[0]) if len(evaluations) == 1 else side_by_side(evaluations))
    if output is not None:
        write_evaluation(output, evaluations)
    if plot is not None:
        scatter_plot(plot, evaluations)


@app.command("select", rich_help_panel=COMPARE)
def select_command(
    scores: Annotated[Path, typer.Argument(help="Scores: pred_score and other columns (.csv, .jsonl, .parquet).")],
    output: Annotated[Path | None, typer.Option(help="Where to write the rows kept, with all their columns.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Drop rows below this score.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Keep the N best rows of each value of --by.")] = None,
    by: Annotated[str | None, typer.Option(help="wav_file_name, text or another column.")] = None,
    keep: Annotated[float | None, typer.Option(help="Keep this share of the rows that are left, e.g. 0.3.")] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Write the best and the worst sound of each text, for preference training (.csv, .jsonl)."),
    ] = None,
    min_margin: Annotated[float, typer.Option(min=0, help="Of pairs: the scores must differ by more than this.")] = 0.0,
    score_column: Annotated[str | None, typer.Option(help="The column of the scores, if not pred_score.")] = None,
    on_error: Annotated[
        OnError, typer.Option(help="At rows without a score or --by: stop, or drop and count them.")
    ] = OnError.stop,
):
    """Keep the best rows of a table of scores, and make preference pairs. It needs no model.

    `xacle select scores.csv --min-score 5 --output good.csv`

    `xacle select scores.csv --top 3 --by wav_file_name --output captions.csv`

    `xacle select scores.csv --pairs pairs.jsonl --min-margin 1`

    Of several options, --min-score comes first, then --top, then --keep. Of equal scores, earlier rows are the better ones. It
    prints what was dropped and a histogram (# kept, . dropped); without --output and --pairs, nothing else.
    """
    from xacle.scoring.selection import SelectionOptions, select

    if (top is None) != (by is None):
        raise typer.BadParameter("--top and --by go together: the N best rows of each value of a column")
    chosen = SelectionOptions(min_score, top, by, keep, min_margin, score_column, on_error.value)
    typer.echo(str(select(scores, output, pairs, chosen)))


@app.command("compare", rich_help_panel=COMPARE)
def compare_command(
    systems: Annotated[
        list[Path], typer.Argument(help="Tables with wav_file_name and pred_score, one a system, or folders of them.")
    ],
    output: Annotated[Path | None, typer.Option(help="Write everything (.json), or the pairs of systems (.csv).")] = None,
    by: Annotated[
        str | None, typer.Option(help="Of one table: the column that names the systems. Of several: compare within each value.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw means and differences with intervals (.png, .pdf, .svg).")] = None,
    bootstrap: Annotated[int, typer.Option(min=1, help="Resamples, for intervals and p-values.")] = 10000,
):
    """Compare systems on the same prompts: means, wins and losses, and whether differences are more than chance.

    `xacle compare tango.csv audioldm.csv`

    `xacle compare all.csv --by model_id`

    Rows are paired by caption if every table has a column text (which `--with-text` of `xacle score` writes) and no caption
    occurs twice in one, else by file name.

    Differences are tested by a paired t-test and a paired bootstrap over prompts, corrected for the number of pairs (Holm).
    """
    from xacle.core.tables import check_output
    from xacle.scoring.comparison import (
        check_comparison_output,
        compare,
        compare_each,
        comparison_plot,
        tables_of,
        write_comparison,
        write_comparisons,
    )

    check_comparison_output(output, systems)
    check_output(plot, suffixes=PLOT_SUFFIXES)
    if by is not None and len(tables_of(systems, least=1)) > 1:
        if plot is not None:
            raise typer.BadParameter("there is no plot of several comparisons (--by with several tables)")
        comparisons = compare_each(systems, by, bootstrap)
        typer.echo("\n\n".join(f"{by}: {value}\n{comparison}" for value, comparison in comparisons.items()))
        if output is not None:
            write_comparisons(output, comparisons, by)
        return
    comparison = compare(systems, bootstrap, by=by)
    typer.echo(str(comparison))
    if output is not None:
        write_comparison(output, comparison)
    if plot is not None:
        comparison_plot(plot, comparison)


@app.command("caption", rich_help_panel=TRAIN)
def caption_command(
    model: Annotated[str, typer.Option(help="Folder or Hub id of a captioner (stage 1).")],
    audio: Annotated[str | None, typer.Option(help="One sound: a file or an http(s) URL.")] = None,
    input: Annotated[Path | None, typer.Option(help="A table (.csv, .jsonl) with wav_file_name and text.")] = None,
    audio_dir: AudioDir = None,
    output: Annotated[Path | None, typer.Option(help="Where to write wav_file_name, text, caption, pred_score (.csv).")] = None,
    sentence_model: Annotated[
        str, typer.Option(help="Any sentence-transformers model.")
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    batch_size: Annotated[int, typer.Option(min=1, help="Clips captioned at once.")] = 16,
    device: Device = None,
):
    """Caption sounds with a model of stage 1.

    `xacle caption --model DIR --audio dog.wav`

    `xacle caption --model DIR --input pairs.csv --audio-dir wav --output captions.csv`

    With a table, pred_score says how close each caption comes to the table's text.
    """
    given = [option is not None for option in (audio, input, output)]
    if given not in ([True, False, False], [False, True, True]):
        raise typer.BadParameter("pass either --audio, or --input and --output")
    from xacle.core.loading import loading
    from xacle.core.tables import counted
    from xacle.scoring.captions import caption_table, generate_captions, load_captioner

    with loading(model, "--model"):
        if input is None:
            typer.echo(generate_captions(*load_captioner(model, device), [audio])[0])
            return
        pairs = caption_table(model, input, audio_dir or input.parent, output, sentence_model, batch_size, device)
    typer.echo(f"{counted(pairs, 'pair')} captioned and scored: {output}", err=True)


@app.command("pseudo-label", rich_help_panel=TRAIN)
def pseudo_label(
    teacher: Annotated[str, typer.Option(help="Folder or Hub id of a ClapModel or a converted M2D-CLAP.")],
    input: Annotated[Path, typer.Option(help="Captions (.csv, .jsonl): wav_file_name and text.")],
    output: Annotated[Path, typer.Option(help="Where to write wav_file_name, text, clap_score, is_negative (.csv, .jsonl).")],
    audio_dir: AudioDir = None,
    negatives_per_pair: Annotated[float, typer.Option(min=0, help="Mismatched pairs for each true one.")] = 2.9,
    replace_audio: Annotated[float, typer.Option(min=0, max=1, help="Share of them whose sound is replaced.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the mismatched pairs.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips or captions embedded at once.")] = 32,
    device: Device = None,
    on_error: Annotated[
        OnError, typer.Option(help="Rows that cannot be used: stop before any work, or skip and list them in a file.")
    ] = OnError.stop,
    feature_cache: Annotated[Path, typer.Option(help="Folder for the embeddings.")] = Path("feature_cache"),
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that decode files.")] = 0,
):
    """Make the table of stage 2: a CLAP teacher labels captioned clips, and mismatched pairs made of them.

    `xacle pseudo-label --teacher DIR --input captions.csv --audio-dir wav --output pseudo_labels.csv`
    """
    from xacle.core.loading import loading
    from xacle.core.tables import counted, rejected_file
    from xacle.train.teacher.pseudo_labels import pseudo_label

    with loading(teacher, "--teacher"):
        written = pseudo_label(
            teacher,
            input,
            output,
            audio_dir,
            negatives_per_pair=negatives_per_pair,
            replace_audio=replace_audio,
            seed=seed,
            batch_size=batch_size,
            device=device,
            on_error=on_error.value,
            feature_cache=feature_cache,
            num_workers=num_workers,
        )
    typer.echo(f"{written.rows} rows, {written.negatives} of them mismatched: {output}", err=True)
    if written.rejected:
        typer.echo(f"{counted(written.rejected, 'row')} skipped, with reasons in {rejected_file(output)}", err=True)


# The training scripts read their arguments themselves: they are TrainingArguments and the stage's own.
TRAINING = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
TRAINING_SCRIPTS = {
    "captioning": ("stage1_captioning", "Stage 1: learn to caption."),
    "pseudo-labels": ("stage2_pseudo_labels", "Stage 2: learn to rank by a teacher's pseudo-labels."),
    "ratings": ("stage3_ratings", "Stage 3: learn to rank by human ratings."),
    "teacher": ("teacher.human_clap", "Tune a CLAP teacher on human ratings (Human-CLAP)."),
}


def add_training_command(name: str, script: str, about: str):
    def train(context: typer.Context):
        import_module(f"xacle.train.{script}").main(context.args)

    train_app.command(name, context_settings=TRAINING, help=f"{about} `--help` lists all arguments.")(train)


for name, (script, about) in TRAINING_SCRIPTS.items():
    add_training_command(name, script, about)


@app.command(rich_help_panel=TRAIN)
def split(
    table: Annotated[Path, typer.Argument(help="Ratings (.csv, .jsonl).")],
    output_dir: Annotated[Path, typer.Option(help="Folder for foldN_train and foldN_validation.")],
    folds: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 5,
    by: Annotated[str | None, typer.Option(help="Column whose values stay together; the clip's name by default.")] = None,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="One fold for every value of --by, e.g. model_id.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the random split.")] = 0,
):
    """Split ratings for cross-validation: into folds, or leaving one system out at a time.

    `xacle split ratings.csv --output-dir folds --folds 5`

    `xacle split ratings.csv --output-dir folds --by model_id --leave-one-out`
    """
    from xacle.train.splits import split_table

    for train, validation in split_table(table, output_dir, folds, by, leave_one_out, seed):
        typer.echo(f"{train}  {validation}")


@app.command("ensemble", rich_help_panel=COMPARE)
def ensemble_command(
    members: Annotated[list[Path], typer.Argument(help="Two or more tables with wav_file_name and pred_score.")],
    output: Annotated[
        Path,
        typer.Option(help="Where to write the ensemble's scores (.csv, .jsonl)."),
    ],
):
    """Combine several models' scores of the same pairs by averaging their ranks.

    `xacle ensemble scores.csv other_scores.csv --output ensemble.csv`
    """
    from xacle.scoring.ensemble import ensemble

    clips, tied = ensemble(members, output)
    typer.echo(f"{clips} clips, {tied} of them tied with another: {output}", err=True)


@convert_app.command("tmu")
def convert_tmu(
    source: Annotated[str, typer.Argument(help="Released folder or Hub id (config.json and model.pt), or a checkpoint file.")],
    output: Annotated[Path, typer.Argument(help="New folder for the converted model.")],
    llm: Annotated[str | None, typer.Option(help="Folder or Hub id of the language model (config and tokenizer only).")] = None,
    beats: Annotated[
        str | None, typer.Option(metavar="FILE_OR_DIR", help="BEATs, for a checkpoint that was saved without its encoder.")
    ] = None,
    lora_alpha: Annotated[
        float | None, typer.Option(help="lora_alpha of adapters that were not merged; what config.json says by default.")
    ] = None,
):
    """Convert the authors' released scorer.

    `xacle convert tmu Atotti/xacle-tmu-2026 xacle-tmu --llm Qwen/Qwen2.5-0.5B-Instruct`
    """
    from transformers import PreTrainedConfig

    from xacle.conversion.tmu import convert_tmu
    from xacle.core.loading import loading

    if llm is not None:  # before a large download
        with loading(llm, "--llm"):
            PreTrainedConfig.get_config_dict(llm)
    asked_for = ("the language model", "--llm") if Path(source).exists() else (source, "SOURCE")
    with loading(*asked_for):
        typer.echo(f"converted: {convert_tmu(source, output, llm, beats, lora_alpha)}")


@convert_app.command("beats")
def convert_beats(
    file: Annotated[Path, typer.Argument(help="Microsoft's BEATs checkpoint (.pt), pre-trained or fine-tuned.")],
    output: Annotated[Path, typer.Argument(help="New folder for the converted encoder.")],
):
    """Convert a BEATs audio encoder.

    `xacle convert beats BEATs_iter3_plus_AS2M.pt beats`
    """
    from xacle.conversion.beats import convert_beats
    from xacle.core.loading import hide_progress_of_loading

    hide_progress_of_loading()
    typer.echo(f"converted: {convert_beats(file, output)}")


@convert_app.command("m2d-clap")
def convert_m2d_clap(
    file: Annotated[Path, typer.Argument(help="M2D-CLAP checkpoint (.pth), in the folder it was released in.")],
    output: Annotated[Path, typer.Argument(help="New folder for the converted CLAP.")],
    text_encoder: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the text encoder; the release's by default.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the released folder, if the file is no longer in it.")] = None,
):
    """Convert M2D-CLAP. Its weights stay under NTT's evaluation license."""
    from xacle.clap.m2d_conversion import convert_m2d_clap
    from xacle.core.loading import loading

    with loading(text_encoder or "the text encoder", "--text-encoder"):
        typer.echo(f"converted: {convert_m2d_clap(file, output, text_encoder, name)}")


@app.command(rich_help_panel=TRAIN)
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Model folder, as training or converting leaves it.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="owner/name on the Hub; it is created if need be.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be uploaded, and upload nothing.")] = False,
    show_card: Annotated[bool, typer.Option("--show-card", help="With --dry-run: print the model card as well.")] = False,
    license: Annotated[
        str | None, typer.Option(help="Of the weights, by the Hub's name; the strictest of what they derive from by default.")
    ] = None,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="You may publish under the licenses of what the weights derive from.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="For you alone, if the repository is new.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; it is created if need be.")] = None,
    commit_message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Hub id of data it was trained on; may be repeated.")] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE=CAPTION", help="A sound to score, upload and show on the card; may be repeated."),
    ] = None,
    card: Annotated[Path | None, typer.Option(help="A model card of your own instead of the one made here.")] = None,
):
    """Publish a model on the Hub: weights, code, processor, handler and model card.

    `xacle push my-scorer me/my-scorer --dry-run --show-card`

    `xacle push my-scorer me/my-scorer`

    The card has what the folder records: where the weights come from, how they were trained, what was measured. Log in
    with `hf auth login` first, or set HF_TOKEN. The folder is left as it is.
    """
    from xacle.publish.push import check_token, prepare, upload

    examples = [text.partition("=") for text in example or ()]
    if bad := [file for file, equals, caption in examples if not (equals and caption.strip())]:
        raise typer.BadParameter(f"must be FILE=CAPTION, got {bad[0]!r}", param_hint="--example")
    if "/" not in repo_id:
        raise typer.BadParameter(f"must be owner/name, got {repo_id!r}", param_hint="REPO_ID")
    if show_card and not dry_run:
        raise typer.BadParameter("goes with --dry-run, which uploads nothing", param_hint="--show-card")
    if not dry_run:
        check_token()
    pairs = [(file, caption) for file, _, caption in examples]
    publication = prepare(
        folder,
        repo_id,
        license=license,
        accept_license=accept_license or dry_run,
        datasets=dataset or (),
        examples=pairs,
        card=card,
        revision=revision,
    )
    if not dry_run:
        commit = upload(publication, private=private or None, revision=revision, commit_message=commit_message)
        typer.echo(commit.commit_url)
        return
    sizes = publication.sizes()
    for path, size in sizes.items():
        typer.echo(f"{size:>14,}  {path}")
    typer.echo(f"{sum(sizes.values()):>14,}  bytes in {len(sizes)} files, to {repo_id} ({revision or 'main'})")
    typer.echo(f"license: {publication.terms.license_name or publication.terms.license}")
    for notice in publication.terms.notices:
        typer.echo(f"{'accepted' if accept_license else 'needs --accept-license'}: {notice}")
    if publication.left_out:
        typer.echo(f"not uploaded: {', '.join(publication.left_out)}")
    if show_card:
        typer.echo(f"\n{publication.card}")


@app.command(rich_help_panel=START)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything; a rerun skips finished steps.")] = Path("demo_output"),
    quick: Annotated[bool, typer.Option("--quick", help="A run of a minute; its numbers mean nothing.")] = False,
    seed: Annotated[int, typer.Option(help="Of the sounds, the ratings, the weights and the order of the data.")] = 0,
    corpus: Annotated[
        Path | None, typer.Option(help="Corpus folder in XACLE's layout, instead of generated soundscapes; see demo/README.md.")
    ] = None,
    audio_encoder: Annotated[
        Path | None,
        typer.Option(help="Folder with a BEATs (`xacle convert beats`); by default a small one is trained."),
    ] = None,
):
    """Run the whole recipe in miniature, on generated sounds with simulated ratings or on a corpus of your own.

    It leaves a table, a report and a model to score with.
    """
    from transformers.utils import logging

    from xacle.demo.report import findings, format_table
    from xacle.demo.run import run_demo
    from xacle.demo.settings import Settings

    logging.disable_progress_bar()  # of loading weights
    logging.set_verbosity_error()
    try:
        run = run_demo(out, Settings(quick, seed, corpus, audio_encoder))
    except KeyboardInterrupt as error:
        typer.echo("\ninterrupted: the same command continues after the last finished step", err=True)
        raise typer.Exit(130) from error
    simulated = run["corpus"].get("ratings") == "simulated"
    ratings = "simulated ratings; the paper's are people's" if simulated else "other data than the paper's"
    typer.echo(f"\nSRCC, ours with 95 % confidence intervals ({ratings}):\n\n{format_table(run)}")
    typer.echo("\n".join(findings(run)))
    typer.echo(f"\n{run['seconds'] / 60:.1f} minutes. The report: {out}/report.html. Score your own sounds with the model:")
    typer.echo(f'xacle score --model {out}/model --audio FILE --text "A dog barks twice"')


@app.command("app", rich_help_panel=SCORE)
def serve_page(
    model: Annotated[str, typer.Option(help="Model folder or Hub id; its code is run.")],
    examples: Annotated[Path | None, typer.Option(help="Folder of sounds with a captions.csv, instead of ours.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at; by default, this machine only.")] = None,
    port: Annotated[int | None, typer.Option(help="By default 7860, or the next that is free.")] = None,
):
    """Serve a page to upload or record sounds and rank captions.

    It also shows the spectrogram, and for long sounds the rating of each 10 s. It needs `pip install -e '.[space]'`
    in the clone.

    `xacle app --model DIR`
    """
    folder = Path(__file__).parent / "space"
    sys.path.insert(0, str(folder))  # a Space's files stand side by side, in no package
    from app import main as run_page

    given = {"--model": model, "--examples": examples, "--host": host, "--port": port}
    run_page([word for name, value in given.items() if value is not None for word in (name, str(value))])


app.add_typer(convert_app, name="convert", rich_help_panel=START)
app.add_typer(train_app, name="train", rich_help_panel=TRAIN)


def extra_of(module: str) -> str | None:
    """The optional dependencies of xacle (`train`, `plot` ...) that a module belongs to."""
    for requirement in requires("xacle"):
        if requirement.startswith("xacle"):  # extras made of others
            continue
        found = re.match(r"""([\w.-]+)[^;]*;\s*extra == ["'](\w+)""", requirement)
        if found and found[1].replace("-", "_") == module.partition(".")[0]:
            return found[2]
    return None


def main():
    """Run the command; errors that the user can fix are printed in one line, without a traceback."""
    try:
        app()
    except (OSError, ValueError, MemoryError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        advice = f"; in the clone of xacle, `pip install -e '.[{extra}]'` brings it" if extra else ""
        typer.secho(f"error: {error}{advice}", fg="red", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
