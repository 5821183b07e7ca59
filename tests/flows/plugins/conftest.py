"""A folder for a person's own files, which is the current one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; what a test adds to Python's search path does not outlive it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    return tmp_path
