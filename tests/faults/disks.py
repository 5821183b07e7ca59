"""Disks that fill up or become read-only: a small tmpfs, or where mounting is not permitted, limits of the process."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Disk:
    """A file system of its own."""

    root: Path

    def fill(self, left_bytes: int = 0) -> None:
        """Take all its space but for `left_bytes`."""
        size = shutil.disk_usage(self.root).free - left_bytes
        if size > 0:
            with self._ballast.open("ab") as file:
                os.posix_fallocate(file.fileno(), file.tell(), size)

    def free(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)

    def set_read_only(self, read_only: bool) -> None:
        """Cover it by a read-only view of itself: files that are open do not prevent that."""
        if not read_only:
            _run("umount", str(self.root))
            return
        _run("mount", "--bind", str(self.root), str(self.root))
        _run("mount", "-o", "remount,bind,ro", str(self.root))

    @property
    def _ballast(self) -> Path:
        return self.root / "ballast"


@contextmanager
def mounted_disk(root: Path, size_mb: int) -> Iterator[Disk]:
    """Give a tmpfs; the test is skipped where mounting is not permitted."""
    root.mkdir()
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(root))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here ({error})")
    try:
        yield Disk(root)
    finally:
        _run("umount", "-l", str(root))


@contextmanager
def limited_files(size_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size: the system refuses the write, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
