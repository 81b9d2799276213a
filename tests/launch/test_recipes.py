"""The recipes of ``launch/recipes``, as far as they can be checked without a cluster.

Linters read them; the commands they print are the commands they run, which stand-ins for gcloud,
srun and xpk take down; and what they send to a host is run here by its shell.
"""

import copy
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from train import tiny

from mdm_jax.train.metrics import read_metrics

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "launch" / "recipes"
TRAIN = ["--config=configs/mdlm_owt.py", "--workdir=/shared/a run"]
TPU = {"TPU": "mine", "ZONE": "us-west4-a"}
XPK = {"CLUSTER": "c", "ZONE": "z", "PROJECT": "p", "IMAGE": "i"}

# What stands for a program: it takes its arguments down, one JSON list a line.
STAND_IN = """#!{python}
import json, os, sys
with open(os.environ["TAKEN"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
sys.exit(int(os.environ.get("STATUS", "0")) if sys.argv[0].endswith("srun") else 0)
"""


def recipe(name, *arguments, folder=ROOT, check=True, **env):
    command = ["bash", str(RECIPES / name), *arguments]
    done = subprocess.run(
        command, env=os.environ | env, capture_output=True, text=True, cwd=folder, timeout=300
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def printed(name, *arguments, **env):
    """The commands of a dry run, as lists of words."""
    out = recipe(name, *arguments, DRY_RUN="1", **env).stdout
    return [shlex.split(line) for line in out.splitlines()]


def taken(tmp_path, name, *arguments, **env):
    """The commands of a run whose programs are stand-ins, and its exit status."""
    for program in ("gcloud", "git", "srun", "scontrol", "xpk"):
        path = tmp_path / "bin" / program
        path.parent.mkdir(exist_ok=True)
        path.write_text(STAND_IN.format(python=sys.executable))
        path.chmod(0o755)
    env |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "TAKEN": str(tmp_path / "taken")}
    done = recipe(name, *arguments, folder=tmp_path, check=False, **env)
    lines = (tmp_path / "taken").read_text().splitlines()
    return [json.loads(line) for line in lines], done.returncode


def test_shellcheck():
    scripts = sorted(map(str, RECIPES.glob("*.sh")))
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, env=WITH_BIN)
    assert len(scripts) == 3 and done.returncode == 0, done.stdout


def test_hadolint():
    command = ["hadolint", str(RECIPES / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, env=WITH_BIN)
    assert done.returncode == 0, done.stdout


WITH_BIN = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
CASES = [
    *(("tpu_vm.sh", [action], TPU) for action in ("create", "setup", "log", "stop", "delete")),
    ("tpu_vm.sh", ["train", *TRAIN], TPU),
    ("tpu_vm.sh", ["create"], TPU | {"SLICES": "4", "PROJECT": "p"}),
    ("tpu_vm.sh", ["train", *TRAIN], TPU | {"SLICES": "4", "PROJECT": "p"}),
    ("slurm.sh", TRAIN, {"PYTHON": "/envs/my python"}),
    ("xpk.sh", ["my-run", *TRAIN], XPK),
]


@pytest.mark.parametrize(
    ("name", "arguments", "env"), CASES, ids=lambda x: x[0] if isinstance(x, list) else None
)
def test_a_dry_run_prints_what_a_run_does(tmp_path, name, arguments, env):
    commands, status = taken(tmp_path, name, *arguments, **env)
    expected = printed(name, *arguments, **env)
    expected = [[Path(command[0]).name, *command[1:]] for command in expected]
    assert commands == expected and commands and status == 0


def test_commands_of_one_slice():
    (create,) = printed("tpu_vm.sh", "create", **TPU)
    assert shlex.join(create) == (
        "gcloud compute tpus tpu-vm create mine --zone=us-west4-a "
        "--accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite"
    )
    archive, scp, ssh = printed("tpu_vm.sh", "setup", **TPU)
    assert archive == ["git", "archive", "--format=tar.gz", "--output=mdm_jax.tar.gz", "HEAD"]
    assert shlex.join(scp) == (
        "gcloud compute tpus tpu-vm scp mdm_jax.tar.gz mine: --zone=us-west4-a --worker=all"
    )
    assert ssh[3:5] == ["tpu-vm", "ssh"] and "--worker=all" in ssh
    assert "uv pip install -q '.[tpu,gcs]'" in ssh[-1]


def test_commands_of_several_slices():
    env = TPU | {"SLICES": "4", "PROJECT": "p", "TYPE": "v6e-256", "RUNTIME": "v2-alpha-tpuv6e"}
    (create,) = printed("tpu_vm.sh", "create", **env)
    assert shlex.join(create) == (
        "gcloud compute tpus queued-resources create mine --zone=us-west4-a --project=p "
        "--accelerator-type=v6e-256 --runtime-version=v2-alpha-tpuv6e --node-count=4 "
        "--node-prefix=mine"
    )
    (log,) = printed("tpu_vm.sh", "log", **env)
    assert "--node=0" in log and "--worker=0" in log
    (train,) = printed("tpu_vm.sh", "train", *TRAIN, **env)
    assert "--node=all" in train and "--worker=all" in train


def test_a_host_starts_and_stops_what_it_is_told(tmp_path):
    """The text that `train` and `stop` send, run by the shell of a home folder made for it."""
    python = tmp_path / "mdm_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexec sleep 60\n')
    python.chmod(0o755)
    commands = [printed("tpu_vm.sh", *a, **TPU)[0][-1] for a in (["train", *TRAIN], ["stop"])]
    start, stop = (command.removeprefix("--command=") for command in commands)
    subprocess.run(["bash", "-c", start], cwd=tmp_path, check=True, timeout=30)
    pid = int((tmp_path / "mdm_jax" / "train.pid").read_text())
    log = tmp_path / "mdm_jax" / "train.log"
    wait_for(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"))
    assert log.read_text().splitlines() == ["launch/train.py", "--multihost", *TRAIN]
    subprocess.run(["bash", "-c", stop], cwd=tmp_path, check=True, timeout=30)
    wait_for(lambda: not running(pid))


def running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_missing_is_named():
    done = recipe("tpu_vm.sh", "create", check=False, TPU="mine", ZONE="")
    assert done.returncode != 0 and "ZONE: such as us-west4-a" in done.stderr
    done = recipe("tpu_vm.sh", "begin", check=False, **TPU)
    assert done.returncode == 2 and "create|setup|train FLAGS...|log|stop|delete" in done.stderr
    done = recipe("xpk.sh", check=False, **XPK)
    assert done.returncode != 0 and "WORKLOAD FLAGS..." in done.stderr


def test_slurm_queues_again_what_was_told_to_stop(tmp_path):
    stopped, status = taken(tmp_path, "slurm.sh", *TRAIN, STATUS="143", SLURM_JOB_ID="17")
    assert [command[0] for command in stopped] == ["srun", "scontrol"] and status == 143
    assert stopped[1][1:] == ["requeue", "17"]
    (tmp_path / "taken").unlink()
    failed, status = taken(tmp_path, "slurm.sh", *TRAIN, STATUS="1", SLURM_JOB_ID="17")
    assert [command[0] for command in failed] == ["srun"] and status == 1


def test_slurm_asks_for_a_process_for_each_gpu():
    text = (RECIPES / "slurm.sh").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.M))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert asked["signal"] == "TERM@300" and "#SBATCH --requeue\n" in text
    # sbatch stops reading at the first command.
    assert text.rindex("#SBATCH") < text.index("set -euo pipefail")


SRUN = """#!{python}
import os, subprocess, sys
command = [word for word in sys.argv[1:] if not word.startswith("--kill-on")]
step = dict(os.environ, SLURM_NTASKS="2", SLURM_STEP_NODELIST="localhost")
tasks = [
    subprocess.Popen(command, env=step | {{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}})
    for i in range(2)
]
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.mark.slow
def test_slurm_trains_on_two_processes(tmp_path):
    """The batch script as it is, under a stand-in for srun that starts two tasks on this host."""
    (tmp_path / "srun").write_text(SRUN.format(python=sys.executable))
    (tmp_path / "srun").chmod(0o755)
    (tmp_path / "text").mkdir()
    for i, document in enumerate(tiny.documents().texts):
        (tmp_path / "text" / f"{i}.txt").write_bytes(document)
    fields = {f"model.{name}": value for name, value in tiny.MODEL.items()}
    fields |= {"data.source": "text_files", "data.path": tmp_path / "text", "data.length": 16}
    fields |= {"data.held_out": 0.3, "train.steps": 4, "train.batch_size": 16}
    fields |= {"train.log_every": 1, "optimizer.warmup": 2, "evaluation.max_windows": 8}
    recipe(
        "slurm.sh",
        *("--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}"),
        *(f"--config.{name}={value}" for name, value in fields.items()),
        PYTHON=sys.executable,
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        PYTHONPATH=str(ROOT),
        SLURM_JOB_ID=str(os.getpid()),
        JAX_NUM_CPU_DEVICES="1",
        JAX_PLATFORMS="cpu",
    )
    records = [r for r in read_metrics(tmp_path / "run") if "loss" in r]
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    # Of two devices, and written by one process.
    ratios = {r["tokens_per_second"] / r["tokens_per_second_per_device"] for r in records}
    assert ratios == {2.0}


def test_jobset_fits_its_schema():
    jobset = yaml.safe_load((RECIPES / "jobset.yaml").read_text())
    schema = json.loads((Path(__file__).parent / "jobset_schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(jobset)
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    chips = 1
    for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(side)
    assert spec["parallelism"] == spec["completions"]
    assert chips == spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    flags = container["args"]
    assert f"--config.mesh.slices={job['replicas']}" in flags and "--multihost" in flags
    (config,) = (flag.removeprefix("--config=") for flag in flags if "--config=" in flag)
    assert (ROOT / config).is_file()
    wrong = copy.deepcopy(jobset)
    wrong["spec"]["replicatedJobs"][0]["template"]["spec"]["paralelism"] = 64
    with pytest.raises(jsonschema.ValidationError, match="'paralelism' was unexpected"):
        validator.validate(wrong)


def test_dockerfile_copies_what_is_there():
    text = (RECIPES / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for word in line.split()]
    assert copied and all((ROOT / name).exists() for name in copied), copied
    needed = {"pyproject.toml", project["readme"], *project["license-files"], "mdm_jax"}
    assert needed <= set(copied)
    for accelerator in re.search(r"in ([\w|]+)\) ;;", text)[1].split("|"):
        assert accelerator in project["optional-dependencies"]
    version = tuple(map(int, re.search(r"^ARG PYTHON=(.+)$", text, re.M)[1].split(".")))
    least = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    assert version >= least
    (script,) = re.findall(r'^ENTRYPOINT \["python", "(.+)"\]$', text, re.M)
    assert (ROOT / script).is_file()
    commands = re.findall(r"# +docker build (.+)$", text, re.M)
    assert all("-f launch/recipes/Dockerfile" in c and c.endswith(" .") for c in commands)


def test_the_extras_that_are_installed_exist():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [
        extra
        for path in RECIPES.iterdir()
        for extras in re.findall(r"'?\.\[([^\]]+)\]", path.read_text())
        for extra in extras.replace("${ACCELERATOR}", "tpu").split(",")
    ]
    assert set(named) == {"tpu", "cuda", "gcs"} and set(named) <= set(known)


def test_every_recipe_is_on_its_page():
    page = (ROOT / "docs" / "running.md").read_text()
    for path in RECIPES.iterdir():
        assert f"launch/recipes/{path.name}" in page, path.name
