"""The error that is meant for people, and the one place that turns what libraries raise into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

_LONGEST_REASON = 300


class ClearError(Exception):
    """The root of the errors whose message is one line for the person at the keyboard."""


class UserError(ClearError, ValueError):
    """Something that a person can correct: the message says what, where, got, expected, and what to do.

    The command line shows it as one line, exit code 2. Any other ValueError is a mistake in this program and
    keeps its traceback.
    """


@contextmanager
def library_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises over what a person gave it into a UserError: `what: reason; remedy`.

    Goes around the calls of a library alone (a tokenizer, a template, transformers, faiss, a parser, the file system),
    where any exception means that the input cannot be used. `what` names the setting, file or field that led there.
    Errors that are meant for people pass as they are, and so does running out of memory: no input is to blame.
    """
    try:
        yield
    except (ClearError, MemoryError):
        raise
    except Exception as error:  # Libraries document no closed list of what they raise over odd input.
        raise UserError(f"{what}: {reason_of(error)}; {remedy}") from error


def reason_of(error: BaseException) -> str:
    """Return an exception's first line of text, the name of its type where it has none; at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    if isinstance(error, ValidationError):  # Its first line only counts the problems.
        problem = error.errors()[0]
        reason = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    if isinstance(error, KeyError | RecursionError | AssertionError):
        reason = f"{type(error).__name__}: {reason}"  # Their text alone says nothing.
    return reason if len(reason) <= _LONGEST_REASON else reason[: _LONGEST_REASON - 1] + "…"
