"""The examples of docs/scaling.md: what can be run here is run, with played cluster commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
# Each task on loopback, as srun starts one on each machine.
SRUN = """#!/bin/bash
ids=()
for node in 0 1; do SLURM_NODEID=$node "$@" & ids+=($!); done
status=0
for id in "${ids[@]}"; do wait "$id" || status=$?; done
exit $status
"""
APPTAINER = """#!/bin/bash
while [ "$1" != labkit.sif ]; do shift; done
shift
exec "$@"
"""


def find_block(language: str) -> str:
    found = re.search(rf"```{language} title=.*?\n(.*?)```", TEXT, re.DOTALL)
    assert found
    return found[1]


def test_the_job_finds_its_first_pod_and_gives_each_rank_a_gpu():
    service, job = yaml.safe_load_all(find_block("yaml"))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = dict(one.split("=", 1) for one in container["args"] if one.startswith("--"))

    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    name = service["metadata"]["name"]
    assert pod["subdomain"] == name
    assert options["--rdzv-endpoint"].startswith(f"{job['metadata']['name']}-0.{name}:")
    assert job["spec"]["completionMode"] == "Indexed"
    assert int(options["--nnodes"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(options["--nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    mounted = {one["name"] for one in container["volumeMounts"]}
    assert mounted == {one["name"] for one in pod["volumes"]}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_batch_script_runs_two_machines_on_loopback(tmp_path):
    cell = (
        "import torch, torch.distributed as dist\ndist.init_process_group('gloo')\n"
        "x = torch.ones(1)\ndist.all_reduce(x)\nprint('sum', x.item())"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    nbformat.write(notebook, tmp_path / "train.ipynb")
    (tmp_path / "train.sbatch").write_text(find_block("bash"))
    commands = tmp_path / "bin"
    commands.mkdir()
    played = {
        "srun": SRUN,
        "apptainer": APPTAINER,
        # Its names come one by one: a pipe to `head` would end the job under pipefail.
        "scontrol": "#!/bin/sh\necho 127.0.0.1\nsleep 1\necho 127.0.0.2\n",
        "labkit": f'#!/bin/sh\nexec "{sys.executable}" -m labkit "$@"\n',
    }
    for name, script in played.items():
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
    }

    done = subprocess.run(
        ["bash", "train.sbatch"],
        check=False,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    executed = list(tmp_path.glob("runs/*/train.rank*.ipynb"))
    assert sorted(path.name for path in executed) == ["train.rank0.ipynb", "train.rank1.ipynb"]
    assert all("sum 2.0" in path.read_text() for path in executed)
