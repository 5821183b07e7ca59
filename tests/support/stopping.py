"""A call that fails once: what a run that stopped there is made with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flows.console.errors import UserError


def fails_once(real: Callable[..., Any], at: int = 1) -> Callable[..., Any]:
    """Return `real`, but for its `at`-th call, which raises a UserError."""
    calls: list[int] = []

    def fails(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise UserError("drawn for the test")
        return real(*arguments, **options)

    return fails
