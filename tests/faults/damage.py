"""Bytes that go bad: flipped at drawn places, cut off, or all gone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["flipped", "truncated", "emptied", "overwritten", "removed"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def damage(path: Path, kind: Kind, draw: random.Random) -> None:
    """Damage a file; what it is linked to stays whole."""
    content = bytearray(path.read_bytes())
    path.unlink()
    if kind == "removed":
        return
    if kind == "flipped":
        for place in draw.sample(range(len(content)), k=min(3, len(content))):
            content[place] ^= 1 << draw.randrange(8)
    elif kind == "truncated":
        del content[draw.randrange(len(content)) :]
    elif kind == "emptied":
        content.clear()
    else:
        content[:] = draw.randbytes(len(content))
    path.write_bytes(content)
