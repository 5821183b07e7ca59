"""Which replica of the model generates a group's turns: always the same one, whose cache has the group's prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Generic, TypeVar

Replica = TypeVar("Replica")


def group_of(key: str) -> str:
    """Return the group of a conversation: its key without the sibling's number."""
    return key.rpartition("/")[0]


class Homes(Generic[Replica]):
    """Spreads groups evenly over the replicas that answer, and keeps each where it is."""

    def __init__(self) -> None:
        self._homes: dict[str, Replica] = {}

    def of(self, group: str, up: Sequence[Replica]) -> Replica:
        """Return the replica of a group: its former one if that is among those that are up, else the emptiest."""
        home = self._homes.get(group)
        if home is None or home not in up:
            counts = Counter(self._homes.values())
            home = self._homes[group] = min(up, key=lambda replica: counts[replica])
        return home

    def forget(self) -> None:
        """Begin anew: nothing is cached any more."""
        self._homes.clear()
