"""The tests depend on nothing that their parent process left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys

HOSTILE = "trap '' INT TERM HUP; umask 077; exec \"$@\""
SEEN = """
import json, os, signal
from tests.support.shell import be_a_plain_shell
be_a_plain_shell()
umask = os.umask(0)
ignored = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_IGN]
print(json.dumps({"umask": umask, "ignored": ignored, "names": sorted(os.environ), "columns": os.environ["COLUMNS"]}))
"""
STEERING = {
    "NO_COLOR": "1",
    "https_proxy": "http://127.0.0.1:9",
    "PREFECT_API_URL": "x",
    "SDSEARCH_HOME": "x",
    "COLUMNS": "3",
}


def test_a_hostile_parent_leaves_nothing() -> None:
    command = ["bash", "-c", HOSTILE, "bash", sys.executable, "-c", SEEN]
    ended = subprocess.run(command, env={**os.environ, **STEERING}, capture_output=True, text=True, check=True)
    seen = json.loads(ended.stdout)
    assert (seen["umask"], seen["ignored"], seen["columns"]) == (0o022, [], "200")
    assert not ({*STEERING} - {"COLUMNS"}) & {*seen["names"]}
