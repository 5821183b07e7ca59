"""Large files of others are hashed once, and again when they look changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

import storage.runs.hashes
from storage.disk.files import sha256_file
from storage.runs.hashes import hash_of
from storage.workspace import Workspace


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read, in order; every file of a byte or more counts as large."""
    paths: list[Path] = []

    def noted(path: Path) -> str:
        paths.append(path)
        return sha256_file(path)

    monkeypatch.setattr(storage.runs.hashes, "sha256_file", noted)
    monkeypatch.setattr(storage.runs.hashes, "_REMEMBERED_BYTES", 1)
    return paths


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path, read: list[Path]) -> None:
    workspace, path, other = Workspace(tmp_path / "ws"), tmp_path / "model.safetensors", tmp_path / "other"
    path.write_bytes(b"weights")
    other.write_bytes(b"others")
    for _ in range(2):
        assert hash_of(workspace, path) == hashlib.sha256(b"weights").hexdigest()
        assert hash_of(workspace, other) == hashlib.sha256(b"others").hexdigest()
    assert read == [path, other]
    former = path.stat()
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(former.st_atime_ns, former.st_mtime_ns))
    assert hash_of(workspace, path) == hashlib.sha256(b"WEIGHTS").hexdigest(), "as long, and its time was put back"
    workspace.hashes.write_text("[1", encoding="utf-8")
    assert hash_of(workspace, path) == hashlib.sha256(b"WEIGHTS").hexdigest(), "what is damaged is forgotten"
    assert read == [path, other, path, path]
    workspace.hashes.write_text('{"a": 1}', encoding="utf-8")
    hash_of(workspace, path)
    assert hash_of(workspace, path) == hashlib.sha256(b"WEIGHTS").hexdigest()
    assert len(read) == 5


def test_small_files_are_always_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"{}")
    assert hash_of(Workspace(tmp_path / "ws"), path) == hashlib.sha256(b"{}").hexdigest()
    assert not (tmp_path / "ws").exists()
