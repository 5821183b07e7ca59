"""What goes wrong with the database file, in words for people."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb

from schemas.commands import command

_HOLDER = re.compile(r"Conflicting lock is held in (?P<program>.+?) \(PID (?P<pid>\d+)\)")
# What a damaged file, a full disk or a failing one raises: nothing that other rows or another query would mend.
_BROKEN = (
    duckdb.IOException,
    duckdb.FatalException,
    duckdb.InternalException,
    duckdb.SerializationException,
    duckdb.TransactionException,  # A commit that the disk refuses.
)
_REFUSED = re.compile(r"No space left|quota exceeded|File too large|Read-only file system|Permission denied", re.I)


def is_broken(error: Exception) -> bool:
    """True when the file or its disk is at fault; a block whose checksum is wrong is an error without a kind."""
    return isinstance(error, _BROKEN) or type(error) is duckdb.Error


def describe_failure(path: Path, error: Exception, verb: str = "used") -> str:
    """Return why the file cannot be used, and what to do about it."""
    remedy = way_out(path)
    if _REFUSED.search(str(error)):
        remedy = "free some space there, or make it writable; its rows are in the files, and enter it when that is done"
    return f"{path} cannot be {verb} ({str(error).splitlines()[0]}); {remedy}"


def way_out(path: Path) -> str:
    """Return what puts a database file back in order."""
    return f"make it again from the files with: {command('db', 'rebuild', workspace=path.parent)}"


def describe_holder(path: str, message: str, waited_s: float) -> str:
    """Return which process or thread keeps the file open; `message` is what DuckDB said of it."""
    holder = _HOLDER.search(message)
    who = f"process {holder['pid']} ({holder['program']})" if holder else "another connection of this process"
    return f"{path} is kept open by {who}; waited {waited_s:.0f} s; close it there and try again (resume continues)"
