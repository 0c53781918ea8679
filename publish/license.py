"""Under which license a model may be published, given what its weights derive from."""

import difflib
from dataclasses import dataclass, field

from xacle.core.provenance import NTT_EVALUATION, TMU

# Whoever keeps their notices may publish what derives from these under the license of their choice.
PERMISSIVE = frozenset({"apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "zlib", "unlicense", "cc0-1.0"})
# What may not be used commercially stays so, whatever is made of it.
NON_COMMERCIAL = (
    *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0"),
    *("cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
)
OTHERS = (
    *("afl-3.0", "agpl-3.0", "artistic-2.0", "bigscience-openrail-m", "bsl-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0"),
    *("cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "ecl-2.0", "epl-2.0"),
    *("eupl-1.2", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "mpl-2.0", "odbl", "openrail", "wtfpl"),
)
LICENSES = sorted({*PERMISSIVE, *NON_COMMERCIAL, *OTHERS, "other"})  # the Hub's identifiers that suit weights

DEFAULT = "apache-2.0"
NOTICES = {
    TMU: f"[{TMU}](https://huggingface.co/{TMU}) is licensed CC-BY-NC-4.0: name its authors, and make no commercial use of it "
    "or of what derives from it.",
    NTT_EVALUATION: "M2D-CLAP is released under NTT's SOFTWARE LICENSE AGREEMENT FOR EVALUATION (github.com/nttcslab/m2d), "
    "which allows internal, non-commercial evaluation and neither distribution nor modification. What was trained from its "
    "weights, or from labels that it gave, may be under these terms as well.",
}


@dataclass
class Terms:
    """The license a model is published under, and the notices that go with it.

    Args:
        license: Identifier of the Hub's.
        license_name: What it is called if the license is "other".
        notices: Sentences about sources that do not leave the choice of the license.
    """

    license: str
    license_name: str | None = None
    notices: list[str] = field(default_factory=list)


def terms_of(sources: list[dict], license: str | None = None, accepted: bool = False) -> Terms:
    """
    Args:
        sources: What the weights derive from, see [`weight_source`].
        license: The wish of whoever publishes. By default the strictest of the sources', Apache-2.0 if all are permissive.
        accepted: Whether they accept the notices, which is needed if there are any.

    Raises:
        ValueError: for a license the Hub does not know or the sources do not allow, one that is missing, and for notices
            that were not accepted.
    """
    if license is not None and license not in LICENSES:
        close = difflib.get_close_matches(license.lower(), LICENSES, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"it knows {', '.join(LICENSES)}"
        raise ValueError(f"the Hub knows no license '{license}'; {hint}")
    bound = [source for source in sources if source["license"] not in PERMISSIVE]
    notices = list(dict.fromkeys(_notice(source) for source in bound))
    known = {source["license"] for source in bound} - {None}
    unrecorded = [source for source in bound if source["license"] is None]
    evaluation_only = NTT_EVALUATION in known
    non_commercial = sorted(known & {*NON_COMMERCIAL}, key=NON_COMMERCIAL.index)
    unnamed = sorted(name for name in known if name not in LICENSES and name != NTT_EVALUATION)
    if evaluation_only or unnamed:
        allowed, chosen = ["other"], "other"
    elif non_commercial:
        allowed, chosen = [*NON_COMMERCIAL, "other"], non_commercial[-1]
    else:
        allowed, chosen = LICENSES, next(iter(sorted(known)), None if unrecorded else DEFAULT)
    if license is not None and license not in allowed:
        raise ValueError(f"the license '{license}' is not possible, only {', '.join(allowed)}:\n" + _as_list(notices))
    if notices and not accepted:
        raise ValueError(
            f"the licenses of what this model derives from bind it:\n{_as_list(notices)}\nNothing was uploaded. If you may "
            "publish it like this, say so with --accept-license (in training, --accept-license true)"
        )
    if license is None and chosen is None:
        names = ", ".join(f"'{source['name']}'" for source in unrecorded)
        raise ValueError(
            f"it is not recorded under which license {names} may be used; find out and pass --license (in training, "
            f"--hub-license), one of {', '.join(LICENSES)}"
        )
    license = license or chosen
    name = None
    if license == "other":
        name = NTT_EVALUATION if evaluation_only else next(iter(unnamed), "see-license-notice")
    return Terms(license, name, notices)


def _notice(source: dict) -> str:
    license, what = source["license"], f"{source['name']} ({source['role']})"
    if source["name"] in NOTICES or license in NOTICES:
        return f"{what}: {NOTICES.get(source['name']) or NOTICES[license]}"
    if license is None:
        return f"{what}: it is not recorded under which license it may be used."
    return f"{what} is licensed {license}, which binds what derives from it."


def _as_list(notices: list[str]) -> str:
    return "\n".join(f"  - {notice}" for notice in notices)
