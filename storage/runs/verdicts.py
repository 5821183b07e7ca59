"""What judges said of answers, kept on disk so that nothing is asked twice."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from storage.disk.text_cache import TextCache
from storage.workspace import Workspace

_MAX_ENTRIES: Final = 10_000_000


class VerdictCache:
    """Verdicts by the hash of all that decides them; losing them costs asking again."""

    def __init__(self, workspace: Workspace) -> None:
        self._texts = TextCache(workspace.verdict_cache, _MAX_ENTRIES)

    def get(self, keys: Iterable[str]) -> dict[str, tuple[bool, str]]:
        """Return whether the answer is right, and the reply that says so, of those keys that were put."""
        found = ((key, json.loads(text)) for key, text in self._texts.get(keys).items())
        return {key: (bool(right), str(reply)) for key, (right, reply) in found}

    def put(self, key: str, right: bool, reply: str) -> None:
        """Keep one verdict."""
        self._texts.put({key: json.dumps([right, reply])})

    def close(self) -> None:
        """Let go of the file."""
        self._texts.close()
