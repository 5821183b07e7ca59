"""A step that the update refuses is kept in the workspace, and the run's error names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flows.console.errors import UserError
from schemas.records.ledger import StageKey
from sdsearch.model.ranks import rank, told_by_first
from sdsearch.training.refusal import NonFiniteUpdateError
from storage.runs.refused_steps import write_refused_step
from storage.workspace import Workspace


@contextmanager
def refused_steps_kept(workspace: Workspace, key: StageKey) -> Iterator[None]:
    """Write the batch of a refused step to a file, and raise UserError that names it."""
    try:
        yield
    except NonFiniteUpdateError as error:
        # Every rank refuses the step; the first one writes it down.
        path = told_by_first(None if rank() else write_refused_step(workspace, key, error.refused))
        raise UserError(f"{error}; the batch and where it came from: {path}") from error
