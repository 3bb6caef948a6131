"""SkyPilot's own schema reads the task; bash gives back what was typed."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from launch.sky import Sky, main

PARSE = """
import json, sys, sky, yaml
task = sky.Task.from_yaml_config(yaml.safe_load(sys.stdin), env_overrides=[("SHARE", "2/3")])
(resources,) = task.resources
mounts = {path: [storage.source, storage.mode.value] for path, storage in task.storage_mounts.items()}
found = {"run": task.run, "envs": task.envs, "mounts": mounts}
print(json.dumps(found | resources.to_yaml_config()))
"""


def job(command: tuple[str, ...], **options) -> Sky:
    return Sky(**{"topology": "v6e:16x16", "command": command, "spot": True} | options)


def test_dry_run_prints_the_task_and_its_launches(command, capsys):
    assert main(Sky, ["--topology", "v6e:16x16", "--spot", "--shares", "2", "--dry-run", "--", *command]) == 0
    printed = capsys.readouterr().out
    task = yaml.safe_load(printed)
    assert task == yaml.safe_load(job(command, shares=2).task())
    assert task["resources"]["accelerators"] == "tpu-v6e-256" and task["workdir"] == "."
    launches = [shlex.split(line[2:]) for line in printed.splitlines() if line.startswith("# sky")]
    same = ["sky", "jobs", "launch", "--yes", "--async", "--name"]
    assert launches == [[*same, f"jaxsat-{i}", "--env", f"SHARE={i}/2", "jaxsat.yaml"] for i in (1, 2)]


@pytest.mark.parametrize("shares", [1, 3])
def test_the_hosts_get_the_command_as_it_was_typed(shares, command, host, arguments):
    run = yaml.safe_load(job(command, shares=shares).task())["run"]
    calls = host(run, SHARE="2/3")
    assert arguments() == (*command, "--share", "2/3")[: len(command) + 2 * (shares > 1)] and calls[-1] == "jaxsat 1"


def test_task_of_skypilot(command, tmp_path):
    if not (sky := shutil.which("sky")):
        pytest.skip("SkyPilot is not installed")
    mine = job(command, shares=3, zone="us-east5-b", mount="gs://my-bucket")
    result = subprocess.run(
        [Path(sky).resolve().parent / "python", "-c", PARSE], input=mine.task(), cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    task = json.loads(result.stdout.splitlines()[-1])
    assert task["run"].rstrip("\n") == "\n".join(mine.script(' --share "$SHARE"'))
    assert (task["infra"], task["use_spot"]) == ("gcp/us-east5/us-east5-b", True)
    assert task["accelerators"] == {"tpu-v6e-256": 1}
    assert task["accelerator_args"] == {"runtime_version": "v2-alpha-tpuv6e"}
    assert task["job_recovery"]["recover_on_exit_codes"] == [75, 134]
    assert task["job_recovery"]["max_restarts_on_errors"] == 0
    assert task["mounts"] == {"~/bucket": ["gs://my-bucket", "MOUNT"]}
    assert task["envs"]["SHARE"] == "2/3"


def test_launches_each_part(tmp_path, monkeypatch):
    sky = tmp_path / "sky"
    sky.write_text(f'#!/bin/bash\necho "$@" >>{tmp_path}/calls\ncp "${{!#}}" {tmp_path}/task.yaml\n')
    sky.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    mine = job(("jaxsat", "train", "x", "--out", "gs://b/c"), shares=2)
    assert mine.launch() == 0
    assert (tmp_path / "task.yaml").read_text() == mine.task()
    assert [line.split()[4:7] for line in (tmp_path / "calls").read_text().splitlines()] == [
        ["--name", "jaxsat-1", "--env"],
        ["--name", "jaxsat-2", "--env"],
    ]
