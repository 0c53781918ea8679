"""What the plots of `evaluate`, `compare` and `explain` share."""

import re
import warnings
from pathlib import Path

from transformers.utils import logging

logger = logging.get_logger(__name__)


def save_plot(figure, output: Path) -> None:
    """Draw a matplotlib figure into a file (png, pdf, svg). Characters that its font lacks are logged in one warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(output, dpi=150)
    glyphs = [re.match(r"Glyph (\d+) .* missing from font\(s\) (.+)\.", str(warning.message)) for warning in caught]
    for warning, glyph in zip(caught, glyphs, strict=True):
        if glyph is None:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if lacking := sorted({chr(int(glyph[1])) for glyph in glyphs if glyph}):
        font = next(glyph[2] for glyph in glyphs if glyph)
        logger.warning(
            f"'{output}' shows boxes for {''.join(lacking)}: the font {font} lacks them. Name one that has them in a file "
            "matplotlibrc, e.g. font.family: Noto Sans CJK JP"
        )
