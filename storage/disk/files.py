"""Files that are complete or absent: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from schemas.records.ledger import ArtifactRef
from storage.disk.signals import signals_deferred
from storage.errors import WriteFailedError

# How the error of a library that is not written in Python tells the system's.
_ERROR_NUMBER = re.compile(r"(?:errno|os error) (\d+)", re.IGNORECASE)


def sha256_file(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """Raise WriteFailedError, which says why `path` cannot be written and what to do, for what the system refuses."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # Of writes within a write, the outer one's path is the one that people know.
        cause = error.__cause__ if isinstance(error, WriteFailedError) and error.__cause__ else error
        raise WriteFailedError(f"{path} cannot be written ({describe_failure(cause, path)}") from cause


def describe_failure(error: BaseException, path: Path) -> str:
    """Return why something could not be written, and after a bracket what to do: `reason); advice`."""
    text = str(error).splitlines()[0]
    told = _ERROR_NUMBER.search(text)
    number = getattr(error, "errno", None) or (int(told[1]) if told else None)
    reason = os.strerror(number) if number else text
    if number in (errno.ENOSPC, errno.EDQUOT):
        nearest = next(folder for folder in path.absolute().parents if folder.exists())
        left = shutil.disk_usage(nearest).free / 1e6
        return f"{reason}); {left:.1f} MB are left there: free some space, then try again (resume continues)"
    if number == errno.EFBIG:
        return f"{reason}); raise the limit of file sizes (ulimit -f), then try again (resume continues)"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{reason}); make it writable, then try again (resume continues)"
    return f"{reason}); correct that, then try again (resume continues)"


@signals_deferred()
def write_atomic(path: Path, write: Callable[[Path], None], root: Path) -> ArtifactRef:
    """Have `write` fill a temporary file beside `path`, then put it in place durably.

    A reader sees the former file or the whole new one, also after a crash. `{sha256}` in the file's name becomes the
    hash of what was written. Returns a reference whose path is relative to `root`. Raises WriteFailedError, and the
    temporary file goes, when the system refuses.
    """
    with failures_named(path.with_name(path.name.replace(".{sha256}", ""))):
        make_folder(path.parent)
        temporary = path.with_name(temporary_name(path.name))
        try:
            write(temporary)
            sync(temporary)
            sha256 = sha256_file(temporary)
            path = path.with_name(path.name.replace("{sha256}", sha256))
            reference = ArtifactRef(
                path=path.relative_to(root).as_posix(), sha256=sha256, size_bytes=temporary.stat().st_size
            )
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)
    return reference


def write_json_atomic(path: Path, value: Any, root: Path) -> ArtifactRef:
    """Write a JSON value as `write_atomic` does, keys sorted."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    return write_bytes_atomic(path, text.encode(), root)


def write_bytes_atomic(path: Path, content: bytes, root: Path) -> ArtifactRef:
    """Write bytes as `write_atomic` does."""
    return write_atomic(path, lambda temporary: _write_bytes(temporary, content), root)


def temporary_name(name: str) -> str:
    """Return a name that nothing else uses, hidden, and recognised by `is_temporary`."""
    return f".{name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"


def is_temporary(path: Path) -> bool:
    """True for what an interrupted write left behind."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a file's lock, which goes with its process; gives False at once when another has it and `wait` is off."""
    make_folder(path.parent)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove what interrupted writes left anywhere below a folder, and return it; the caller is the only writer."""
    gone: list[Path] = []
    for root, folders, names in os.walk(folder):
        left = [Path(root, name) for name in (*folders, *names) if is_temporary(Path(name))]
        folders[:] = [name for name in folders if not is_temporary(Path(name))]
        for path in left:
            remove(path)
        gone += left
    return gone


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def make_folder(path: Path) -> None:
    """Create a folder and its parents, each durable in its parent."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def sync(path: Path) -> None:
    """Force a file's bytes or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
