"""A run goes on while Prefect's server is away, and returns to it; what it missed is told."""

from __future__ import annotations

import httpx
import pytest

from flows.orchestration.recovery import WhileItAnswers


class Prefect:
    """Does parts, or fails as a client does whose server is gone; keeps what was done with it and without."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_there = True
        self.with_prefect: list[int] = []
        self.plainly: list[int] = []
        monkeypatch.setattr("flows.orchestration.recovery.server_error", self.error)

    def error(self) -> Exception | None:
        return None if self.is_there else httpx.ConnectError("refused")

    def do(self, part: int) -> int:
        if not self.is_there:
            raise httpx.ConnectError("refused")
        self.with_prefect.append(part)
        return part

    def do_plainly(self, part: int) -> int:
        self.plainly.append(part)
        return part


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Prefect:
    return Prefect(monkeypatch)


def test_parts_are_done_plainly_while_the_server_is_away(prefect: Prefect) -> None:
    unseen: list[str] = []
    parts = WhileItAnswers(unseen)
    for part in range(6):
        prefect.is_there = part not in (2, 3)
        assert parts.do(f"part {part}", prefect.do, prefect.do_plainly, part) == part
        assert parts.answers == prefect.is_there
    assert prefect.with_prefect == [0, 1, 4, 5]
    assert prefect.plainly == [2, 3]
    assert unseen == ["part 2", "part 3"]


def test_a_server_that_came_back_at_once_does_not_hide_that_a_part_was_lost(prefect: Prefect) -> None:
    unseen: list[str] = []

    def broken_off(part: int) -> int:
        raise httpx.RemoteProtocolError("the server closed the connection")

    assert WhileItAnswers(unseen).do("part", broken_off, prefect.do_plainly, 1) == 1
    assert unseen == ["part"]


def test_an_error_of_the_work_is_not_taken_for_the_servers(prefect: Prefect) -> None:
    def fails(part: int) -> int:
        raise ValueError("drawn for the test")

    with pytest.raises(ValueError, match="drawn for the test"):
        WhileItAnswers([]).do("part", fails, prefect.do_plainly, 1)
    assert prefect.plainly == []
