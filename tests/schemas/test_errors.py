"""What libraries raise becomes one line that names what led there."""

from __future__ import annotations

import pytest

from schemas.errors import UserError, library_errors, reason_of
from storage.errors import DamagedArtifactError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("first\nsecond"), "first"),
        (KeyError("name"), "KeyError: 'name'"),
        (RecursionError("maximum recursion depth exceeded"), "RecursionError: maximum recursion depth exceeded"),
        (OSError(), "OSError"),
        (TypeError("\n\n  unsupported  \n"), "unsupported"),
        (ValueError("x" * 1000), "x" * 299 + "…"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_library_s_error_is_one_line(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
    with pytest.raises(UserError) as raised, library_errors("model.path 'x'", "choose another"):
        raise error
    assert str(raised.value) == f"model.path 'x': {reason}; choose another"
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [UserError("clear"), DamagedArtifactError("clear"), MemoryError(), KeyboardInterrupt()], ids=repr
)
def test_clear_errors_and_what_no_input_is_to_blame_for_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, library_errors("x", "y"):
        raise error
    assert raised.value is error
