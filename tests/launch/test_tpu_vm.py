"""gcloud's own parser reads the commands; bash runs the hosts' script; a gcloud that tells a story is watched."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.tpu_vm import TpuVm, main

PARSE = """
import json, sys
sys.path[:0] = [sys.argv[1] + "/lib", sys.argv[1] + "/lib/third_party"]
from googlecloudsdk import gcloud_main
try:
    parser = gcloud_main.CreateCLI([])._TopElement()._parser
except AttributeError:
    sys.exit(75)
for command in json.load(sys.stdin):
    args = parser.parse_args(command[1:])
    print(json.dumps({k: v for k, v in vars(args).items() if isinstance(v, (str, int, dict))}))
"""
INSTALL = ("jaxsat[tpu] @ git+https://example.com/it's@0123abc", "gs://bucket/jaxsat-0.1.0-py3-none-any.whl[tpu]")


def job(command: tuple[str, ...], **options) -> TpuVm:
    return TpuVm(topology="v5e:16x16", zone="us-west4-a", install=INSTALL, command=command, **options)


def startup(create: list[str]) -> str:
    """The script in a create command."""
    return next(arg for arg in create if arg.startswith("--metadata=")).partition("startup-script=")[2]


def test_dry_run_prints_what_is_run(command, capsys):
    argv = ["--topology", "v5e:16x16", "--zone", "us-west4-a", "--shares", "2", "--install", *INSTALL, "--dry-run"]
    assert main(TpuVm, [*argv, "--", *command]) == 0
    words = shlex.split(capsys.readouterr().out, comments=True)
    mine = job(command, shares=2)
    shares = {"jaxsat-1": " --share 1/2", "jaxsat-2": " --share 2/2"}
    expected = [mine.create(*item) for item in shares.items()] + [mine.list()] + [mine.delete(name) for name in shares]
    assert words == sum(expected, [])


def test_gcloud_parses_the_commands(command, tmp_path):
    if not (gcloud := shutil.which("gcloud")):
        pytest.skip("gcloud is not installed")
    root = Path(gcloud).resolve().parents[1]
    bundled = root / "platform/bundledpythonunix/bin/python3"
    one = job(command, spot=True, flags="--labels='a=b,c=d e' --network=mine")
    many = job(command, slices=3, project="example.com:p")
    commands = [one.create("jaxsat", ""), many.create("jaxsat", " --share 1/2"), one.delete("jaxsat"), one.list()]
    python = [str(bundled) if bundled.exists() else sys.executable, "-c", PARSE, str(root)]
    env = os.environ | {"CLOUDSDK_CONFIG": str(tmp_path)}
    result = subprocess.run(python, input=json.dumps(commands), env=env, capture_output=True, text=True, timeout=120)
    if result.returncode == 75:
        pytest.skip("this gcloud keeps its parser elsewhere")
    assert result.returncode == 0, result.stderr
    single, multi, delete, listed = map(json.loads, result.stdout.splitlines())
    assert single["metadata"] == {"startup-script": startup(commands[0])}
    assert (single["accelerator_type"], single["runtime_version"]) == ("v5litepod-256", "v2-alpha-tpuv5-lite")
    assert (single["node_id"], single["spot"], single["zone"]) == ("jaxsat", True, "us-west4-a")
    assert single["labels"] == {"a": "b", "c": "d e"} and single["network"] == "mine"
    assert (multi["node_count"], multi["node_prefix"], multi["project"]) == (3, "jaxsat", "example.com:p")
    assert not multi["spot"] and delete["force"] and delete["quiet"] and listed["format"].startswith("value(")


def test_the_hosts_get_the_command_as_it_was_typed(command, host, arguments):
    calls = host(startup(job(command).create("jaxsat", " --share 2/3")))
    assert arguments() == (*command, "--share", "2/3")
    wheel = "gs://bucket/jaxsat-0.1.0-py3-none-any.whl"
    assert f"gcloud storage cp {wheel} ." in calls and "jaxsat 1" in calls  # JAXSAT_DISTRIBUTED
    assert any(call.endswith(f"-- {INSTALL[0]} ./{wheel.rpartition('/')[2]}[tpu]") for call in calls)
    logs = "gs://bucket/it's $(touch pwned); a,b-logs/jaxsat-t1v-n-0.log"
    assert calls[-2].startswith("gcloud storage cp ") and calls[-2].endswith(logs)
    deleted = "gcloud compute tpus queued-resources delete jaxsat --zone=us-west4-a --force --quiet --async"
    assert calls[-1] == deleted


@pytest.mark.parametrize(
    ("codes", "starts"),
    [((0,), 1), ((1, 0), 1), ((2, 0), 1), ((75, 75, 0), 3), ((134, 75, 137, 1), 4), ((75,) * 9, 4), ((130, 0), 2)],
)
def test_preempted_and_killed_hosts_start_again(codes, starts, host):
    calls = host(startup(job(("jaxsat", "train", "x", "--out", "gs://b/c"), restarts=3).create("jaxsat", "")), codes)
    assert calls.count("jaxsat 1") == starts and calls[-1].startswith("gcloud compute tpus queued-resources delete")


@pytest.mark.parametrize(
    ("environment", "deletes"),
    [
        ({"WORKER": "0", "TPU_ENV": "MEGASCALE_SLICE_ID: '0'"}, True),
        ({"WORKER": "0", "TPU_ENV": "NODE_ID: 'x'\nMEGASCALE_SLICE_ID: '12'"}, False),
        ({"WORKER": "3", "TPU_ENV": ""}, False),
    ],
)
def test_the_first_host_gives_the_slices_back(environment, deletes, host):
    script = startup(job(("jaxsat", "train", "x", "--out", "gs://b/c")).create("jaxsat", ""))
    assert any("delete" in call for call in host(script, **environment)) == deletes


def test_nothing_trains_when_the_installation_fails(host):
    script = startup(job(("jaxsat", "train", "x", "--out", "gs://b/c")).create("jaxsat", ""))
    calls = host(script, INSTALLS="1")
    assert "jaxsat 1" not in calls and calls[-1].startswith("gcloud compute tpus queued-resources delete")


def watch(story: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options) -> tuple[int, list[str]]:
    """Exit code and calls of a launch in which `gcloud list` answers the story, None being an error."""
    answers = tmp_path / "answers"
    answers.mkdir()
    for i, answer in enumerate(story):
        (answers / f"{i:02}").write_text(
            "error" if answer is None else "".join(f"{s}\n" for s in answer.split(",") if s)
        )
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(
        f'#!/bin/bash\nname="$4 $5"; [ "$4" = list ] || {{ echo "${{name%% -*}}" >>{tmp_path}/calls; exit; }}\n'
        f"answer=$(ls {answers}/* | head -n 1); echo list >>{tmp_path}/calls\n"
        '[ "$(cat "$answer")" = error ] && { rm "$answer"; exit 1; }; tr : "\\t" <"$answer"; rm "$answer"\n'
    )
    gcloud.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    code = job(("jaxsat", "train", "x", "--out", "gs://b/c"), **options).launch()
    assert not any(answers.iterdir())
    return code, [call for call in (tmp_path / "calls").read_text().splitlines() if call != "list"]


def test_preempted_slices_are_requested_again(tmp_path, monkeypatch, capsys):
    story = ["", "", "jaxsat:WAITING_FOR_RESOURCES", "jaxsat:ACTIVE,other:FAILED", None, "jaxsat:SUSPENDING",
             "jaxsat:SUSPENDED", "", "jaxsat:ACTIVE", ""]  # fmt: skip
    assert watch(story, tmp_path, monkeypatch) == (0, ["create jaxsat", "delete jaxsat", "create jaxsat"])
    assert "gs://b/c-logs/jaxsat-*.log" in capsys.readouterr().out


def test_watching_continues_without_a_second_request(tmp_path, monkeypatch):
    assert watch(["jaxsat:ACTIVE", ""], tmp_path, monkeypatch) == (0, [])


def test_one_part_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    story = ["", "jaxsat-1:FAILED,jaxsat-2:ACTIVE", "jaxsat-1:FAILED,jaxsat-2:SUSPENDED", "jaxsat-2:ACTIVE", ""]
    calls = ["create jaxsat-1", "create jaxsat-2", "delete jaxsat-2", "create jaxsat-2"]
    assert watch(story, tmp_path, monkeypatch, shares=2) == (1, calls)
    assert "describe jaxsat-1 --zone=us-west4-a says why" in capsys.readouterr().out


def test_gcloud_that_refuses_ends_the_launch(tmp_path, monkeypatch):
    with pytest.raises(subprocess.CalledProcessError):
        watch([None], tmp_path, monkeypatch)
