"""xpk itself turns the commands into manifests; Kubernetes' expansion and bash give back what was typed."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from jaxsat.machine import TPUS
from launch.jobs import accelerator_type
from launch.xpk import Xpk, main


def job(command: tuple[str, ...], **options) -> Xpk:
    return Xpk(**{"topology": "v5e:16x16", "cluster": "mine", "command": command} | options)


def expanded(text: str, **environment: str) -> str:
    """As Kubernetes expands a container's command: $$ is $, $(NAME) a variable of the container, if it has it."""
    known = lambda found: environment.get(found[1], found[0]) if found[1] else "$"
    return re.sub(r"\$\$|\$\(([^)]*)\)", lambda m: known(m) if m[0] != "$$" else "$", text)


def test_dry_run_prints_what_is_run(command, capsys):
    argv = ["--topology", "v5e:16x16", "--cluster", "mine", "--shares", "3", "--dry-run", "--", *command]
    assert main(Xpk, argv) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = [job(command).create(f"jaxsat-{i}", f" --share {i}/3") for i in (1, 2, 3)]
    assert [shlex.split(line) for line in lines] == expected


def test_the_hosts_get_the_command_as_it_was_typed(command, host, arguments):
    script = job(command).create("jaxsat", " --share 2/3")[-1].removeprefix("--command=")
    calls = host(expanded(f"({script}) & wait $!", HOME="expanded by Kubernetes"))
    assert arguments() == (*command, "--share", "2/3") and calls[-1] == "jaxsat 1"
    assert any(call.endswith("-- .[tpu] gcsfs") for call in calls)


@pytest.fixture(scope="module")
def xpk() -> Path:
    if not (path := shutil.which("xpk")):
        pytest.skip("xpk is not installed")
    return Path(path).resolve()


def manifest(create: list[str], tmp_path: Path) -> dict:
    """The JobSet that xpk would apply."""
    dry = ["--project=p", "--project-number=1", "--dry-run", "--skip-validation", "--quiet"]
    path = tmp_path / "manifest.yaml"
    env = os.environ | {"HOME": str(tmp_path)}
    command = [*create, *dry, f"--output-manifest-file={path}"]
    result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return yaml.safe_load(path.read_text())["spec"]


def test_manifest_of_xpk(command, xpk, host, arguments, tmp_path):
    create = job(command, slices=2, restarts=7, spot=True, zone="us-west4-a").create("jaxsat-1", " --share 1/2")
    spec = manifest(create, tmp_path)
    (slices,) = spec["replicatedJobs"]
    pods = slices["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    assert (slices["replicas"], pods["completions"], spec["failurePolicy"]["maxRestarts"]) == (2, 64, 7)
    assert pods["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "16x16"
    (rule,) = pods["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "NotIn")
    restarts = set(rule["onExitCodes"]["values"])
    assert {75, 134, 137, 143} <= restarts and not {0, 1, 2} & restarts
    program, option, script = container["command"]
    assert (program, option) == ("bash", "-c")
    calls = host(expanded(script, HOME="expanded by Kubernetes"))
    assert arguments() == (*command, "--share", "1/2") and calls[-1] == "jaxsat 1"


def test_topologies_of_xpk(xpk):
    """Every slice that xpk knows, by the name that we give it; xpk has two names for those of the usual shape."""
    table = "from xpk.core.system_characteristics import UserFacingNameToSystemCharacteristics as table\n"
    program = table + "for name, s in table.items(): print(name, s.topology)"
    listed = subprocess.run([xpk.parent / "python", "-c", program], capture_output=True, text=True, timeout=120).stdout
    systems = dict(line.split() for line in listed.splitlines())
    generations = {tpu.accelerator: generation for generation, tpu in TPUS.items()}
    checked = 0
    for name, topology in systems.items():
        generation = generations.get(name.partition("-")[0])
        if generation and name.partition("-")[2].isdecimal():
            assert accelerator_type(f"{generation}:{topology}") == name
            checked += 1
        elif generation:
            ours = next(
                arg for arg in job((), topology=f"{generation}:{topology}").create("x", "") if "--tpu-type" in arg
            )
            assert ours.removeprefix("--tpu-type=") in systems
    assert checked > 50
