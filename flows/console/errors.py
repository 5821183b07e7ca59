"""Which errors are for people: shown as one line, exit code 2. Everything else keeps its traceback."""

from __future__ import annotations

from typing import Final

from schemas.errors import UserError
from storage.errors import StorageError

PEOPLES_ERRORS: Final[tuple[type[Exception], ...]] = (UserError, StorageError)

__all__ = ["PEOPLES_ERRORS", "UserError"]
