"""What building an index prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class IndexReport:
    """What `index build` tells of one index."""

    folder: Path
    num_passages: int
    size: str  # such as 2048 dimensions
    duration_s: float
