"""That the ranks run the program of the run's process: the same sources of their work, and the same torch."""

from __future__ import annotations

import torch

from flows.run.sources import describe_changes
from flows.run.stage_inputs import stage_sources
from flows.training.ranks.messages import Program
from flows.training.stages.teacher import TEACHER
from flows.training.stages.update import UPDATE
from schemas.errors import UserError
from schemas.settings.root import Settings


def this_program(settings: Settings) -> Program:
    """Return what this process does the ranks' work with."""
    sources = {**stage_sources(settings, TEACHER), **stage_sources(settings, UPDATE)}
    return Program(torch=str(torch.__version__), sources=sources)


def check_program(who: str, own: Program, expected: Program) -> None:
    """Raise UserError when `who` would compute with another torch or other code than the run's process has."""
    differences = []
    if own.torch != expected.torch:
        differences.append(f"its torch is {own.torch}, the run's is {expected.torch}")
    if own.sources != expected.sources:
        differences.append(describe_changes(expected.sources, own.sources) + " the run began")
    if differences:
        raise UserError(
            f"{who} runs another program than the run's process ({'; '.join(differences)}); nothing of the stage "
            "was kept; install one program, then continue with: sdsearch resume"
        )
