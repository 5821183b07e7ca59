"""The doctor on several machines: here a thread each, with folders of their own where nothing is shared."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.app import run_command
from flows.doctor import together
from flows.doctor.checks import Check
from flows.doctor.together import Meeting, meet, rank_checks, read_meeting
from flows.settings.load import load_settings
from schemas.errors import UserError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def meet_all(folders: Sequence[Path]) -> list[dict[str, Check]]:
    """What each machine finds; the first folder is machine 0's."""
    port, number = free_port(), len(folders)
    with ThreadPoolExecutor(number) as threads:
        found = threads.map(
            lambda place: meet(Meeting("127.0.0.1", port, number, place, 120.0), folders[place]), range(number)
        )
        return [{check.name: check for check in checks} for checks in found]


def test_machines_that_share_everything_miss_nothing(tmp_path: Path) -> None:
    found = meet_all([tmp_path / "workspace"] * 3)
    assert all(check.ok for checks in found for check in checks.values())
    assert [list(checks) for checks in found] == [["machines meet", "network", "shared workspace", "clocks"]] * 3
    assert found[1]["clocks"].found.endswith("s from machine 0's")
    assert not list((tmp_path / "workspace").iterdir()), "tokens are removed"


def test_a_folder_of_ones_own_is_no_shared_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_SEEN_S", 1.0)
    first, second, third = meet_all([tmp_path / "shared", tmp_path / "shared", tmp_path / "own"])
    assert first["shared workspace"].found == second["shared workspace"].found == "what machine 2 wrote is not here"
    assert third["shared workspace"].found == "what machine 0, machine 1 wrote is not here"
    assert not third["shared workspace"].ok
    assert str(tmp_path / "own") in third["shared workspace"].remedy
    assert first["network"].ok


def test_a_clock_that_is_wrong_is_told_by_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Machine(together._Machine):
        """Machine 1's clock is an hour behind."""

        def __init__(self, meeting: Meeting, store: object) -> None:
            super().__init__(meeting, store)
            self.now = lambda: time.time() - 3600 * meeting.place

    monkeypatch.setattr(together, "_Machine", Machine)
    _, second = meet_all([tmp_path, tmp_path])
    assert not second["clocks"].ok
    assert 3590 < float(second["clocks"].found.split()[0]) < 3700
    assert "NTP" in second["clocks"].remedy


def test_a_machine_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = free_port()
    say = together._Machine.say

    def elsewhere(self: together._Machine, key: str, value: object) -> None:
        say(self, key, ["127.0.0.1", closed] if key == "address" and self._meeting.place == 1 else value)

    monkeypatch.setattr(together._Machine, "say", elsewhere)
    first, second = meet_all([tmp_path, tmp_path])
    assert first["network"].found == "machine 1 at 127.0.0.1: Connection refused"
    assert not first["network"].ok
    assert second["network"].ok


def test_ranks_of_a_machine_meet_on_its_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings("tiny", ["distributed.ranks=2"])
    assert list(rank_checks(load_settings("tiny", []))) == []
    assert [check.ok for check in rank_checks(settings)] == [True]

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("flows.doctor.together.socket.create_server", refuse)
    (check,) = rank_checks(settings)
    assert check.found == "no way (Operation not permitted)"
    assert "127.0.0.1" in check.remedy


def test_a_machine_that_does_not_come_is_waited_for_as_long_as_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["doctor", "--meet", f"127.0.0.1:{free_port()}", "--timeout", "1", "--workspace", str(tmp_path / "w")]
    assert run_command(command) == 1
    said = capsys.readouterr().out
    assert "not all came" in said
    assert "machine 0 of 2: 1 of 1 are missing" in said
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("node0", 2, 0), "expected HOST:PORT"),
        (("node0:99999", 2, 0), "expected HOST:PORT"),
        (("node0:1", 1, 0), "at least 2"),
        (("node0:1", 2, 2), "expected a number from 0 to 1"),
    ],
)
def test_what_is_no_meeting_is_refused(asked: tuple[str, int, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_meeting(*asked, timeout_s=1.0)
    assert read_meeting("[::1]:29500", 2, 1, 1.0) == Meeting("::1", 29500, 2, 1, 1.0)
