"""SD-Search from Python: `import sdsearch`, then a dozen names.

Read what a workspace holds, also while a run works: `open_workspace`, `open_run`. Do the method's steps by hand:
`load_settings`, `load_questions`, `load_policy`, `open_retriever`, `roll_out`, `score_groups`, `build_blocks`,
`compute_teacher`, `compute_loss`. What a person can put right is a `UserError`.

These names stay; what else the packages hold may change. Each is loaded when it is first asked for. They join this
library with storage and the runs, so they live in `flows.api`: the one way from here to there.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "UserError": "schemas.errors",
    "build_blocks": "flows.api.method",
    "compute_loss": "flows.api.method",
    "compute_teacher": "flows.api.method",
    "load_policy": "flows.api.policy",
    "load_questions": "flows.api.inputs",
    "load_settings": "flows.settings.load",
    "open_retriever": "flows.api.inputs",
    "open_run": "flows.api.workspace",
    "open_workspace": "flows.api.workspace",
    "roll_out": "flows.api.method",
    "score_groups": "flows.api.method",
}
__all__ = sorted(_HOMES)  # __init__.pyi has the names as type checkers and editors read them


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sdsearch' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
