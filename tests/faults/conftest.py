"""A run that nothing disturbs, to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.compare import Snapshot, snapshot
from tests.faults.disks import Disk, mounted_disk
from tests.faults.runs import quick, train


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of a finished run of `quick()`."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder, quick())
    return folder


@pytest.fixture(scope="session")
def expected(undisturbed: Path) -> Snapshot:
    return snapshot(undisturbed)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted_disk(tmp_path / "disk", size_mb=32) as disk:
        yield disk
