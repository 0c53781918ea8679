"""Scoring: `from xacle.scoring import Scorer, best_of_n, AlignmentReward, compare, evaluate, explain`.

Each is imported with its module when it is asked for: a command loads what it needs.
"""

from importlib import import_module

_MODULES = {
    "AlignmentReward": "reward",
    "Scorer": "scorer",
    "ScoringOptions": "table_job",
    "best_of_n": "ranking",
    "compare": "comparison",
    "evaluate": "evaluation",
    "explain": "explanation",
    "load_scorer": "scorer",
    "score_table": "table_job",
    "select": "selection",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
