"""A package that somebody installs with pip brings a plugin by its entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "guest-rewards"
version = "1.2"

[project.entry-points."sdsearch.rewards"]
brevity = "guest_rewards.brevity:Brevity"
"""
REWARD = '''
"""A guest's reward."""

from sdsearch.credit.rewards import Reward


class Brevity(Reward):
    """Less for every search."""

    price: float = 0.05

    def __call__(self, rollout, golden_answers, scores):
        return {"f1": scores.f1, "searches": -self.price * len(rollout.queries)}
'''
CONFIG = """
base = "tiny"
[reward]
name = "brevity"
options.price = 0.5
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder into which pip has installed the guest's package."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    package = source / "guest_rewards"
    package.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "brevity.py").write_text(REWARD, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--no-index", "--target", target, source], check=True)
    return target


def sdsearch(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = [str(installed), *filter(None, [os.environ.get("PYTHONPATH", str(Path.cwd()))])]
    return subprocess.run(
        [sys.executable, "-m", "flows.app", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_its_plugin_is_listed_and_chosen_by_its_short_name(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(CONFIG, encoding="utf-8")
    listed = sdsearch(installed, tmp_path, "plugins", "--config", "mine.toml")
    assert listed.returncode == 0, listed.stderr
    (line,) = [line for line in listed.stdout.splitlines() if "brevity" in line]
    assert "package guest-rewards" in line
    shown = sdsearch(installed, tmp_path, "config", "show", "mine.toml")
    assert shown.returncode == 0, shown.stderr
    assert "price" in shown.stdout
    assert "0.5" in shown.stdout


def test_its_options_are_checked(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(CONFIG.replace("price", "prize"), encoding="utf-8")
    shown = sdsearch(installed, tmp_path, "config", "show", "mine.toml")
    assert shown.returncode != 0
    assert "prize" in shown.stderr
    assert "Traceback" not in shown.stderr
