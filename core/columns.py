"""The names that columns of tables have. Elsewhere a column is known by its tuple here; the first name is the one we write."""

from pathlib import Path

# The challenge's files say wav_file_name, its README wave_file_name; the others are usual in Hub datasets.
FILE_COLUMNS = ("wav_file_name", "wave_file_name")
TEXT_COLUMNS = ("text",)
LISTENER_ID = "listener_id"
SYSTEM = "model_id"

PREDICTION_COLUMNS = ("pred_score", "prediction_score")  # the challenge's name; the authors' code writes the other
AVERAGE_COLUMNS = ("average_score", "average_semantic_alignement_score")  # the challenge's files, its README's spelling
LISTENER_COLUMNS = ("score",)  # of one listener, named by listener_id
RATING_COLUMNS = AVERAGE_COLUMNS + LISTENER_COLUMNS
PSEUDO_LABEL_COLUMNS = ("clap_score",)

# What a table to train on may have as its label.
LABEL_COLUMNS = {
    "rating": RATING_COLUMNS,
    "pseudo_label": PSEUDO_LABEL_COLUMNS,
    "caption": (),
    "any": RATING_COLUMNS + PSEUDO_LABEL_COLUMNS,
}


def column_of(rows: list[tuple[int, dict]], names: tuple[str, ...], table: Path) -> str:
    """The first of `names` that the rows have. Raises `ValueError` if there is none."""
    columns = {name for _, row in rows for name in row if name is not None}
    if found := next((name for name in names if name in columns), None):
        return found
    if separator := next(
        (name for sign, name in (("\t", "tabs"), (";", "semicolons")) if any(sign in c for c in columns)), None
    ):
        raise ValueError(f"'{table}' seems to be separated by {separator}; save it with commas")
    raise ValueError(
        f"'{table}' needs the column {' or '.join(names)}, separated by commas and spelled like this; it has "
        f"{', '.join(map(repr, sorted(columns)))}"
    )
