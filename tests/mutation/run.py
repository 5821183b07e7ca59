"""Make small errors in a copy of the sources, one at a time, and see that the tests notice each.

`python -m tests.mutation.run [NAME …]` prints a table and ends with 1 when an error went unnoticed, with 2 when the
list does not fit the sources or the tests fail without any error. Nothing is written outside a temporary folder.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from schemas.base import nearest_name
from tests.mutation.mutants import TESTS, Mutant, check, mutants

ROOT = Path(__file__).parents[2]
PACKAGES = ("flows", "schemas", "sdsearch", "storage", "tests")
# Slow to import and never mutated: loaded once, before the processes part; what the tests set up comes first.
HEAVY = ("tests.conftest", "pytest", "torch", "transformers", "peft")
PYTEST_OPTIONS = ("-x", "-q", "--tb=no", "-p", "no:cacheprovider", "--hypothesis-profile=notice")
TIMEOUT_S = 900.0
TESTS_FAILED = 1  # pytest's exit code; any other but 0 means that no verdict was reached


def copy_tree(folder: Path) -> None:
    """Copy what the tests need."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy2(ROOT / "pyproject.toml", folder)


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests in the copy up to the first failure, in a process of their own; return its exit code and output."""
    output = folder / "output.txt"
    process = os.fork()
    if process == 0:
        _be_pytest(folder, tests, output)
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), output.read_text(encoding="utf-8", errors="replace")
        if time.monotonic() > deadline:
            os.kill(process, 9)
            os.waitpid(process, 0)
            raise SystemExit(f"the tests did not end within {TIMEOUT_S:.0f} s: {', '.join(tests)}")
        time.sleep(0.05)


def _be_pytest(folder: Path, tests: Sequence[str], output: Path) -> None:
    """Turn this process into a test run of the copy; never returns."""
    with output.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]
    os.chdir(folder)
    sys.path[:] = [str(folder), *(place for place in sys.path if place not in ("", str(ROOT)))]
    # Compiled files are told apart by size and whole seconds, which a mutation may leave as they were.
    sys.dont_write_bytecode = True
    code = importlib.import_module("pytest").main([*PYTEST_OPTIONS, *tests])
    sys.stdout.flush()
    os._exit(int(code))


def first_failure(output: str) -> str | None:
    """Return the name of the test that failed, None when none did."""
    found = re.search(r"^FAILED \S*/(\S+?\.py::[^\s\[]+)", output, re.MULTILINE)
    return found[1] if found else None


def try_mutant(folder: Path, mutant: Mutant) -> str | None:
    """Return the first test that notices the error, None when it survives."""
    path = folder / mutant.file
    source = path.read_text(encoding="utf-8")
    path.write_text(mutant.apply(source), encoding="utf-8")
    code, output = run_tests(folder, mutant.tests)
    path.write_text(source, encoding="utf-8")
    failure = first_failure(output)
    if code not in (0, TESTS_FAILED) or (code and not failure):
        raise SystemExit(f"mutation '{mutant.name}': the tests gave no verdict (exit code {code})\n{output[-2000:]}")
    return failure


def chosen(names: Sequence[str]) -> list[Mutant]:
    """Return the mutations of the given names, all without names; ends the program at a name that none has."""
    known = {mutant.name: mutant for mutant in mutants()}
    unknown = [name for name in names if name not in known]
    if unknown:
        near = nearest_name(unknown[0], list(known))
        hint = f"the nearest is '{near}'" if near else "mutants.toml in tests/mutation names all"
        raise SystemExit(f"no mutation is called '{unknown[0]}'; {hint}")
    return [known[name] for name in names] if names else list(known.values())


def main(names: Sequence[str]) -> int:
    wanted, problems = chosen(names), check(ROOT)
    if problems:
        print("\n".join([*problems, "change tests/mutation/mutants.toml"]), file=sys.stderr)
        return 2
    for name in HEAVY:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="mutation-") as temporary:
        folder = Path(temporary)
        copy_tree(folder)
        code, output = run_tests(folder, list(dict.fromkeys(test for mutant in wanted for test in TESTS[mutant.file])))
        if code:
            print(f"the tests fail without any mutation\n{output[-2000:]}", file=sys.stderr)
            return 2
        return report(folder, wanted)


def report(folder: Path, wanted: Sequence[Mutant]) -> int:
    """Print a line a mutation; return 1 when one survives."""
    survivors = 0
    print("| mutation | file | noticed by | seconds |\n|---|---|---|---|", flush=True)
    for mutant in wanted:
        start = time.monotonic()
        noticed = try_mutant(folder, mutant)
        survivors += noticed is None
        verdict = f"`{noticed}`" if noticed else "**nothing**"
        print(f"| {mutant.name} | `{mutant.file}` | {verdict} | {time.monotonic() - start:.0f} |", flush=True)
    print(f"\n{len(wanted) - survivors} of {len(wanted)} mutations noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
