"""Seeds from identity, so that no result depends on loop order or on what ran before."""

from __future__ import annotations

import hashlib


def derive_seed(*identity: str | int) -> int:
    """Return a seed in [0, 2**63) that depends on nothing but the given parts, in order."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in identity)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
