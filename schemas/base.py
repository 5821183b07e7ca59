"""The base of every record that crosses a stage boundary, and of the sections of the settings."""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

STORED = "stored"
"""Validation context of settings that a run was started with: a rule that came later does not lock the run out."""

Positive = Annotated[int, Field(ge=1)]
CardNumbers = tuple[Annotated[int, Field(ge=0)], ...]
"""Cards as a machine numbers those that a process sees, from 0."""
Fraction = Annotated[float, Field(ge=0, le=1)]


def check_url(url: str) -> str:
    """Return the URL of a server as it is; ValueError for what no client can use: no host, no such port, a query."""
    parts = urlsplit(url)  # ValueError for half an IPv6 address.
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} has no port from 1 to 65535") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or " " in url or not url.isprintable():
        raise ValueError(f"{url!r} is no http://host:port")
    try:
        parts.hostname.encode("idna")
    except UnicodeError as error:
        raise ValueError(f"{url!r} has no host's name before its port") from error
    if "?" in url or "#" in url:
        raise ValueError(f"{url!r} has a query or a fragment; leave what begins at '?' or '#' out")
    return url


Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+[^\s]*$"), AfterValidator(check_url)]


class Record(BaseModel):
    """A frozen pydantic model that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def content_hash(self) -> str:
        """Return the sha256 (hex) of the record's canonical JSON."""
        return hash_json(self.model_dump(mode="json"))


class Section(Record):
    """A part of the settings; its numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


def hash_json(value: Any) -> str:
    """Return the sha256 (hex) of a JSON value, keys sorted, no blanks."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def nearest_name(name: str, known: list[str]) -> str | None:
    """Return the known name most like `name`, or None when nothing is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return close[0] if close else None
