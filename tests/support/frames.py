"""Run as a module it is `sdsearch`, but that it ends at the first rollout to train on and prints who called it.

One line a function of the program, from `main` to `roll_out`; what lies between them (Typer, Prefect) is left out.
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

import flows
from flows.app import main
from sdsearch.sampling.rollouts import RolloutLoop

_ROOT = Path(flows.__file__).parents[1]
_PROGRAM = ("flows", "sdsearch")
_real = RolloutLoop.roll_out


def _print_and_end(loop: RolloutLoop, *arguments: Any, **options: Any) -> Any:
    if options["iteration"] == 0:  # The evaluation of the start.
        return _real(loop, *arguments, **options)
    called = [
        f"{Path(frame.filename).relative_to(_ROOT)}: {frame.name}"
        for frame in traceback.extract_stack()
        if any(Path(frame.filename).is_relative_to(_ROOT / package) for package in _PROGRAM)
    ]
    first = next(index for index, line in enumerate(called) if line == "flows/app.py: main")
    print("\n".join(["frames:", *called[first:], "sdsearch/sampling/rollouts.py: roll_out"]), flush=True)
    os._exit(0)


if __name__ == "__main__":
    RolloutLoop.roll_out = _print_and_end  # type: ignore[method-assign]
    main()
