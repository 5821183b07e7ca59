"""Draw odd settings and files for as long as is wanted: `python -m tests.fuzz.run --minutes 10 --seed 1`.

Each draw asks the doctor, then starts a training; some train to the end. What is allowed: exit code 0, or 2 with one
line; the doctor's word before the start's; no run left behind by a start that was refused. A draw follows from the seed
and its number alone: `--seed S --only N` repeats it. Draws run in a process of their own with bounded memory, so that
one that ends its process is reported too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch

from tests.fuzz.bench import Bench
from tests.fuzz.commands import disagreement
from tests.fuzz.files import draw_files
from tests.fuzz.pools import draw_settings, leaves

_MEMORY_BYTES = 16 * 1024**3
_FILES_SHARE = 0.5


def draw(seed: int, number: int, bench: Bench, place: Path) -> tuple[str, list[str]]:
    """Return the settings file and the overrides of one draw; what it changes lies below `place`."""
    random = Random(f"{seed}:{number}")
    if random.random() < _FILES_SHARE:
        return draw_files(random, bench, place)
    return draw_settings(random, bench, list(leaves()))


def check(seed: int, number: int) -> tuple[str, list[str]]:
    """Return what one draw was, and what is wrong with how the program takes it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config, overrides = draw(seed, number, Bench(root / "bench"), root / "drawn")
        return f"{Path(config).name} {' '.join(overrides)}", disagreement(config, overrides, root / "workspace")


def _work(seed: int, first: int, until: float) -> None:
    """Check draws from `first` on, and print a line of JSON for each."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    number = first
    while time.time() < until:
        print(json.dumps({"begun": number}), flush=True)
        drawn, wrong = check(seed, number)
        print(json.dumps({"number": number, "drawn": drawn, "wrong": wrong}), flush=True)
        number += 1


def _results(seed: int, until: float) -> Iterator[tuple[int, str, list[str]]]:
    """Yield (number, drawn, wrong) of each draw; a process that ends is followed by another."""
    number = 0
    while time.time() < until:
        command = [sys.executable, "-m", "tests.fuzz.run", "--work", str(number), "--until", str(until)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        with subprocess.Popen(
            [*command, "--seed", str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        ) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                answer = json.loads(line)
                number = answer.get("number", answer.get("begun"))
                if "number" in answer:
                    yield number, answer["drawn"], answer["wrong"]
        if time.time() < until:
            yield number, "", [f"the process ended with {worker.returncode}"]
        number += 1


def main() -> int:
    """Draw until the time is up; the exit code is 1 when something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", type=int, help="check one draw of the seed, in this process")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        _work(arguments.seed, arguments.work, arguments.until)
        return 0
    if arguments.only is not None:
        drawn, wrong = check(arguments.seed, arguments.only)
        print(drawn, *wrong, sep="\n")
        return bool(wrong)
    print(f"seed {arguments.seed}, {arguments.minutes} minutes")
    number_wrong = number_done = 0
    for number, drawn, wrong in _results(arguments.seed, time.time() + 60 * arguments.minutes):
        number_done += 1
        if wrong:
            number_wrong += 1
            print(f"draw {number}: {drawn}", *wrong, sep="\n  ")
    print(f"{number_done} draws, {number_wrong} of them wrong")
    return bool(number_wrong)


if __name__ == "__main__":
    sys.exit(main())
