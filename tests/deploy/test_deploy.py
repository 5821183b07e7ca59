"""The files of deploy/, as far as they can be tried without Slurm, Kubernetes and Docker."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from flows.settings.load import load_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
RECORDER = '#!/bin/bash\nprintf "%s\\n" "$@" > "$FOLDER/task-${SLURM_PROCID:-$JOB_COMPLETION_INDEX}"\n'
SRUN = """#!/bin/bash
shift
for SLURM_PROCID in 0 1 2; do SLURM_PROCID=$SLURM_PROCID "$@"; done
"""


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """Stands first in the path: programs that write down what they were asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    nodes = '#!/bin/bash\n[ "$*" = "show hostnames node[3-5]" ] && printf "node3\\nnode4\\nnode5\\n"\n'
    for name, text in {"sdsearch": RECORDER, "srun": SRUN, "scontrol": nodes}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def run(words: list[str], folder: Path, **variables: str) -> None:
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "FOLDER": str(folder)}
    done = subprocess.run(
        words, env={**environment, **variables}, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def asked(folder: Path, task: int) -> list[str]:
    return (folder / f"task-{task}").read_text().splitlines()


def overrides(words: list[str]) -> list[str]:
    return [word for flag, word in itertools.pairwise(words) if flag == "--set"]


@pytest.fixture
def job() -> dict:
    return manifests()["Job"]


def manifests() -> dict[str, dict]:
    return {part["kind"]: part for part in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


def container(job: dict) -> dict:
    (only,) = job["spec"]["template"]["spec"]["containers"]
    return only


def shellcheck(text: str) -> str:
    words = [str(SHELLCHECK), "--shell", "bash", "-"]
    return subprocess.run(words, input=text, capture_output=True, text=True, check=False).stdout


def test_shellcheck_finds_nothing(job: dict) -> None:
    assert shellcheck("echo $unquoted"), "shellcheck looks at what it is given"
    assert shellcheck((DEPLOY / "slurm.sbatch").read_text()) == ""
    (script,) = container(job)["args"]
    assert shellcheck(script) == ""


def test_under_slurm_the_first_task_holds_the_run_and_the_others_join_it(bin_folder: Path) -> None:
    slurm = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[3-5]",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_GPUS_ON_NODE": "4",
        "SDSEARCH": "sdsearch",
    }
    run([str(DEPLOY / "slurm.sbatch"), "tiny", "--set", "seed=3"], bin_folder, **slurm)
    first = asked(bin_folder, 0)
    assert first[:2] == ["train", "tiny"]
    assert first[first.index("--run") + 1] == "slurm-4711"
    settings = load_settings("tiny", overrides(first))
    assert (settings.seed, settings.distributed.nodes, settings.distributed.ranks) == (3, 3, 12)
    assert settings.distributed.endpoint == "node3:24711"
    assert asked(bin_folder, 1) == asked(bin_folder, 2) == ["join", "node3:24711"]


def test_the_manifests_are_kubernetes_own() -> None:
    found = manifests()
    assert set(found) == {"Service", "PersistentVolumeClaim", "Job"}
    for manifest in found.values():
        kubernetes_validate.validate(manifest, "1.33", strict=True)
    broken = {**found["Job"], "spec": {**found["Job"]["spec"], "completionsMode": "Indexed"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.33", strict=True)


def test_under_kubernetes_pod_0_holds_the_run_and_the_others_join_it(job: dict, bin_folder: Path) -> None:
    own = container(job)
    variables = {entry["name"]: entry["value"] for entry in own["env"]}
    for index in (0, 1):
        run([*own["command"], *own["args"]], bin_folder, JOB_COMPLETION_INDEX=str(index), **variables)
    first = asked(bin_folder, 0)
    assert first[:4] == ["train", "paper_3b", "--run", "paper-3b"]
    settings = load_settings(variables["CONFIG"], overrides(first))
    assert (settings.distributed.nodes, settings.distributed.ranks) == (2, 16)
    assert asked(bin_folder, 1) == ["join", settings.distributed.endpoint]


def test_the_jobs_numbers_and_names_agree(job: dict) -> None:
    spec, own, service = job["spec"], container(job), manifests()["Service"]
    variables = {entry["name"]: entry["value"] for entry in own["env"]}
    assert spec["completionMode"] == "Indexed"
    assert str(spec["completions"]) == str(spec["parallelism"]) == variables["NODES"]
    assert own["resources"]["limits"]["nvidia.com/gpu"] == variables["CARDS"]
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["metadata"]["name"] == spec["template"]["spec"]["subdomain"]
    (port,) = own["ports"]
    assert f"endpoint={name}-0.{service['metadata']['name']}:{port['containerPort']}\n" in own["args"][0]


def test_images_are_built_by_steps_of_the_makefile() -> None:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [step for step in re.findall(r"^RUN (.*)$", text, re.MULTILINE) if not step.startswith("apt-get")]
    assert len(steps) == 2
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for step in steps:
        words = shlex.split(step)
        assert words[:2] == ["make", "install"]
        (chosen,) = [word.partition("=")[2] for word in words if word.startswith("EXTRAS=")]
        assert set(chosen.split(",")) <= set(extras)
        shown = subprocess.run(
            ["make", "--dry-run", "--always-make", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert f"--editable '.[{chosen}]'" in shown.stdout
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", text, re.MULTILINE)
    assert [name for _, name in stages] == ["base", "cpu", "gpu"]
    assert {source for source, _ in stages[1:]} == {"base"}
