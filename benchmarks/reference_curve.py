"""Put the curve of `sdsearch study study_reference` into the program: what a quickstart run is shown beside.

    sdsearch study study_reference --workspace FOLDER
    python benchmarks/reference_curve.py FOLDER

Only finished runs enter. Make it anew when the quickstart's settings, the mini policy or the embedded world change.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

from flows.run.reference import comparable_hash
from flows.study.plan import load_study, plan_runs
from flows.study.reporting import report
from schemas.records.reference import ReferenceCurve, ReferenceRun
from storage.disk.files import write_bytes_atomic
from storage.workspace import open_existing

STUDY = "study_reference"
TARGET = Path(__file__).parents[1] / "flows" / "references" / "quickstart.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    workspace = open_existing(parser.parse_args().workspace)
    study = load_study(STUDY, workspace)
    results = report(study, workspace)
    settings = plan_runs(study)[0].settings
    curve = ReferenceCurve(
        title=study.title_of(study.baseline),
        config=study.base,
        made_with=f"sdsearch study {STUDY}; python benchmarks/reference_curve.py",
        code_version=version("sdsearch"),
        comparable_hash=comparable_hash(settings),
        runs=tuple(
            ReferenceRun(seed=outcome.seed, evaluations=outcome.evaluations)
            for outcome in results.outcomes
            if outcome.finished
        ),
    )
    write_bytes_atomic(TARGET, curve.model_dump_json(indent=1).encode() + b"\n", TARGET.parent)
    print(f"{TARGET}: {len(curve.runs)} runs, seeds {', '.join(str(run.seed) for run in curve.runs)}")


if __name__ == "__main__":
    main()
