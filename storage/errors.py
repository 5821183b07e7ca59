"""What storage tells people: each message says what, where, what was expected and what to do."""

from __future__ import annotations

from schemas.errors import ClearError


class StorageError(ClearError):
    """The root of storage's errors; its message is one sentence for the person at the keyboard."""


class WorkspaceError(StorageError):
    """The workspace folder, or a name that would become a path in it, cannot be used."""


class WriteFailedError(StorageError, OSError):
    """A file cannot be written: its disk is full or read-only, or a limit was met; what it held before is intact."""


class DamagedArtifactError(StorageError):
    """A stored file is missing, altered, or not what its reference says."""


class RecordMismatchError(StorageError):
    """A table and a record type do not fit each other."""


class DatabaseBusyError(StorageError):
    """Another process kept the database file until the deadline."""


class DatabaseUnusableError(StorageError):
    """The database file is damaged, of another version, or cannot be written."""


class QueryError(StorageError):
    """A query that a person wrote does not run."""


class RunNotFoundError(StorageError):
    """No run of this name is in the workspace."""


class RunExistsError(StorageError):
    """A run of this name is in the workspace already."""


class RunLockedError(StorageError):
    """Another process is working on the run."""
