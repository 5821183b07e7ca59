"""The public names, as type checkers and editors read them."""

from flows.api.inputs import load_questions, open_retriever
from flows.api.method import build_blocks, compute_loss, compute_teacher, roll_out, score_groups
from flows.api.policy import load_policy
from flows.api.workspace import open_run, open_workspace
from flows.settings.load import load_settings
from schemas.errors import UserError

__all__ = [
    "UserError",
    "build_blocks",
    "compute_loss",
    "compute_teacher",
    "load_policy",
    "load_questions",
    "load_settings",
    "open_retriever",
    "open_run",
    "open_workspace",
    "roll_out",
    "score_groups",
]
