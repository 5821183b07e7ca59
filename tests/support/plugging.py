"""Plugins for tests: the examples of docs/plugins.md, as files in a folder that is the current one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from schemas.records.rollout import Rollout
from sdsearch.credit.rewards import StandardScores

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
_FILE = re.compile(r"<!-- file: (\S+) -->\n```python\n(.*?)```\n\n```toml\n(.*?)```\n", re.DOTALL)


def length(rollout: Rollout, golden_answers: Sequence[str], scores: StandardScores) -> dict[str, float]:
    """A reward that is a plain function: the fewer turns, the better."""
    return {"turns": -float(len(rollout.turns))}


def brevity(rollout: Rollout, golden_answers: Sequence[str], scores: StandardScores) -> dict[str, float]:
    """A reward that differs between rollouts of one turn."""
    return {"tokens": -float(len(rollout.token_ids))}


def examples() -> dict[str, tuple[str, str]]:
    """Return each example of the page by its file's name: the plugin, and the settings that choose it."""
    return {name: (source, settings) for name, source, settings in _FILE.findall(PAGE.read_text(encoding="utf-8"))}


def write_example(name: str, folder: Path, base: str = "tiny") -> Path:
    """Write an example's file and a settings file that builds on `base`; return the settings file."""
    source, settings = examples()[name]
    (folder / name).write_text(source, encoding="utf-8")
    config = folder / f"{Path(name).stem}.toml"
    config.write_text(f'base = "{base}"\n\n{settings}', encoding="utf-8")
    return config
