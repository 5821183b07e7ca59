"""A warm-up as Prefect sees it: flow `sdsearch-warmup`, a task a step."""

from __future__ import annotations

from collections.abc import Callable

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from rich.console import Console

from flows.warmup.plan import WarmupPlan
from flows.warmup.work import PLAIN, Steps, warm_up
from schemas.records.warmup import WarmupRecord

Step = Callable[[WarmupPlan, Console], None]


def warm_up_as_flow(plan: WarmupPlan, console: Console) -> WarmupRecord:
    """Do a warm-up in a flow run of its name; errors as of `warm_up`."""

    def work() -> WarmupRecord:
        return warm_up(plan, console, Steps(*(_as_task(step, plan, console) for step in PLAIN)))

    as_flow = flow(name="sdsearch-warmup", flow_run_name=plan.name, persist_result=False, validate_parameters=False)
    return as_flow(work)()


def _as_task(step: Step, plan: WarmupPlan, console: Console) -> Step:
    """Return the step as a task without parameters: plans and consoles never pass through Prefect."""
    name = step.__name__.replace("_", " ")
    as_task = task(name=name, cache_policy=NO_CACHE, persist_result=False, retries=0)(lambda: step(plan, console))
    return lambda plan, console: as_task()
