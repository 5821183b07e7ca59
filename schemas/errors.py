"""The error that is meant for people."""

from __future__ import annotations


class UserError(ValueError):
    """Something that a person can mend: the message says what, where, got, expected, and what to do.

    The command line shows it as one line, exit code 2. Any other ValueError is a mistake in this program and
    keeps its traceback.
    """
