"""A screening: what the turns are worth, once; each variant's teacher asked about them; how far the two agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from flows.console.errors import UserError
from flows.console.interrupts import resumable
from flows.console.terminal import print_line
from flows.replay.plan import ReplayPlan, check_replayable, plan_replay
from flows.replay.work import replay
from flows.run.inputs import check_inputs
from flows.run.live import open_runtime
from flows.run.progress import SilentReporter
from flows.screen.agree import compare, predictions
from flows.screen.credit import credit_of
from flows.screen.plan import ScreenPlan, plan_screen
from flows.screen.show import print_screen
from flows.screen.truth import Tell, find_turns
from flows.settings.load import stored_settings
from flows.study.plan import load_study
from flows.study.reporting import report
from schemas.commands import command
from schemas.records.screen import Prediction, ScreenResults, ScreenRow, TurnCredit
from schemas.records.study import Study
from storage.runs.lock import RunLock
from storage.runs.screens import ScreenStore
from storage.storage import Storage
from storage.workspace import open_existing


def screen_in_terminal(
    run: str,
    variants: str,
    iterations: str,
    *,
    num_groups: int,
    num_draws: int,
    seed: int,
    against: str | None,
    folder: Path,
    as_json: bool,
    console: Console,
) -> None:
    """Screen the variants of a file and print the table; a screening that was stopped goes on by the same command."""
    storage = Storage(open_existing(folder))
    plan = plan_screen(storage.ledger.get_run(run), variants, iterations, num_groups, num_draws, seed)
    words = ["--variants", variants, "--iterations", iterations, "--groups", str(num_groups)]
    words += ["--resample", str(num_draws), "--seed", str(seed), *(["--against", against] if against else [])]
    again = command("screen", run, *words, workspace=storage.workspace.root)
    say = Console(stderr=True) if as_json else console
    with resumable(say, again):
        results = screen(plan, storage, against, lambda text: print_line(say, text))
    print_screen(results, ScreenStore(storage.workspace, plan.name).folder, console, as_json=as_json)


def screen(plan: ScreenPlan, storage: Storage, against: str | None, tell: Tell) -> ScreenResults:
    """Do what of a screening is not done yet, and write and return what came of it.

    Raises UserError before anything is drawn for iterations that are not stored or whose weights are gone, inputs that
    have changed and a study that is not there; RunLockedError while another process draws for the same screening.
    """
    check_replayable(storage, next((v.replay for v in plan.variants if v.replay), _replay_of(plan)))
    trained = load_study(against, storage.workspace) if against else None
    store, settings = ScreenStore(storage.workspace, plan.name), stored_settings(plan.source)
    with RunLock(storage.workspace, f"screen-{plan.name}"):
        with open_runtime(settings, plan.source.run, storage, SilentReporter()) as live:
            check_inputs(live, plan.source, [])
            turns, hit_means = find_turns(plan, storage, live, tell)
        credit: dict[str, list[TurnCredit]] = {}
        for variant in plan.variants:
            if variant.replay is not None:
                tell(f"variant {variant.name}: replay {variant.replay.run}")
                replay(variant.replay, storage, SilentReporter())
            credit[variant.name] = credit_of(variant, plan, turns, storage.database)
        store.write("credit", TurnCredit, [each for of_variant in credit.values() for each in of_variant])
        rows = compare(turns, credit, plan.baseline, plan.seed)
        results = ScreenResults(
            run=plan.source.run,
            first=plan.first,
            last=plan.last,
            num_groups=len({turn.group_id for turn in turns}),
            num_turns=len(turns),
            num_hits=sum(turn.hit for turn in turns),
            num_draws=plan.num_draws,
            hit_means=hit_means,
            baseline=plan.baseline,
            titles={variant.name: variant.title for variant in plan.variants},
            rows=tuple(rows),
            predictions=tuple(_predictions(rows, trained, storage) if trained else ()),
        )
        store.write_results(results)
    return results


def _predictions(rows: Sequence[ScreenRow], study: Study, storage: Storage) -> list[Prediction]:
    results = report(study, storage.workspace)
    if not results.figures:
        raise UserError(f"study {study.name}: its runs have no answers in the database to compare with")
    return predictions(rows, study, results.figures[0])


def _replay_of(plan: ScreenPlan) -> ReplayPlan:
    """Return the replay under the run's own settings: it needs what the draws need."""
    return plan_replay(plan.source, f"{plan.first}:{plan.last}", [], None)
