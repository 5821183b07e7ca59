"""Tables for other people's programs, each written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.disk.files import write_atomic


def write_table_atomic(path: Path, table: pa.Table, root: Path) -> None:
    """Write rows as parquet; WriteFailedError when the system refuses."""
    write_atomic(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"), root)


def write_jsonl_atomic(path: Path, rows: Iterable[Mapping[str, Any]], root: Path) -> None:
    """Write rows as JSON, one a line, UTF-8; WriteFailedError when the system refuses."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    write_atomic(path, write, root)
