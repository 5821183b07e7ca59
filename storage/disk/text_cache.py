"""Texts by their keys, kept on disk: one SQLite file that several processes may use at once.

A cache is never needed: whatever goes wrong with it costs asking again, not the run. A damaged file is put aside.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeVar

from storage.disk.files import make_folder

logger = logging.getLogger(__name__)
T = TypeVar("T")
_BUSY_S: Final = 5.0
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, key TEXT UNIQUE, text TEXT, checksum INTEGER)"
)
_GET: Final = "SELECT key, text, checksum FROM entries WHERE key IN (SELECT value FROM json_each(?))"
_PUT: Final = "INSERT OR IGNORE INTO entries (key, text, checksum) VALUES (?, ?, ?)"
# Ids have no gaps, so that this keeps the newest; no scan has to count them.
_BOUND: Final = "DELETE FROM entries WHERE id <= (SELECT max(id) FROM entries) - ?"
# SQLITE_ERROR is what a table of another shape gives.
_DAMAGE: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}


class _DamagedRowError(Exception):
    """A row is not what was written."""


class TextCache:
    """Texts by key; what an entry means is up to who puts it."""

    def __init__(self, path: Path, max_entries: int) -> None:
        """Use the file at `path`, made when first needed; it holds up to `max_entries`, the oldest go first."""
        self._path = path
        self._max_entries = max_entries
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._inode = 0
        self._is_off = False

    def get(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the texts of those keys that were put."""
        asked = json.dumps(list(keys))

        def read(database: sqlite3.Connection) -> dict[str, str]:
            rows = database.execute(_GET, [asked]).fetchall()
            return {key: _checked(key, text, checksum) for key, text, checksum in rows}

        return self._guarded(read, {})

    def put(self, texts: Mapping[str, str]) -> None:
        """Keep the text of each key in one short transaction."""
        rows = [(key, text, _checksum(key, text)) for key, text in texts.items()]

        def write(database: sqlite3.Connection) -> None:
            with database:
                database.execute("BEGIN IMMEDIATE")
                database.executemany(_PUT, rows)
                database.execute(_BOUND, [self._max_entries])

        self._guarded(write, None)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._disconnect()

    def _guarded(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Do the work with the open database; what fails is told and costs no more than the cache."""
        with self._lock:
            if self._is_off:
                return otherwise
            try:
                return work(self._database or self._connect())
            except (sqlite3.Error, OSError, _DamagedRowError) as error:
                self._disconnect()
                if _is_damage(error):
                    self._put_aside(error)
                elif getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                    logger.warning("the cache %s is busy; this time nothing is looked up or kept", self._path)
                else:
                    self._is_off = True
                    logger.warning("the cache %s cannot be used (%s); the run continues without it", self._path, error)
                return otherwise

    def _connect(self) -> sqlite3.Connection:
        make_folder(self._path.parent)
        # The lock above sees to it that one thread at a time uses the connection.
        database = sqlite3.connect(self._path, _BUSY_S, isolation_level=None, check_same_thread=False)
        self._database = database
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(_TABLE)
        self._inode = self._path.stat().st_ino
        return database

    def _disconnect(self) -> None:
        if self._database is not None:
            with closing(self._database):
                self._database = None

    def _put_aside(self, error: Exception) -> None:
        """Move a damaged file away, unless another process has done so; the next use makes a new one."""
        aside = self._path.with_name(f"{self._path.name}.damaged")
        try:
            if self._inode in (0, self._path.stat().st_ino):
                self._path.replace(aside)
                for suffix in ("-wal", "-shm"):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            self._inode = 0
        except OSError as refusal:
            self._is_off = True
            logger.warning("the cache %s is damaged (%s) and cannot be put aside (%s)", self._path, error, refusal)
        else:
            logger.warning("the cache %s is damaged (%s); it is now %s, a new one is made", self._path, error, aside)


def _checksum(key: str, text: str) -> int:
    return zlib.crc32(f"{key}{text}".encode())


def _checked(key: str, text: Any, checksum: Any) -> str:
    if not isinstance(text, str) or _checksum(key, text) != checksum:
        raise _DamagedRowError("an entry is not what was written")
    return text


def _is_damage(error: Exception) -> bool:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    return isinstance(error, _DamagedRowError) or (code & 0xFF) in _DAMAGE
