"""What the engines share: a job, the shell lines that its hosts run, and the command line.

A launcher only writes a command line for an engine that exists, and runs it. Values that a user gives reach a shell
quoted, and are printable, so that each stays on one line of every format on the way.
"""

import math
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from jaxsat.config import InputError
from jaxsat.machine import TPUS

HOME = '"$HOME/jaxsat-env"'
INSTALL = {
    "gcloud": "https://cloud.google.com/sdk/docs/install",
    "xpk": "pip install xpk",
    "sky": "pip install 'skypilot[gcp]'",
}


def slice_shape(topology: str) -> tuple[str, list[int]]:
    """(generation, chips in each dimension) of a topology as `jaxsat plan` writes it, v4:8x8x4; turned as xpk does."""
    generation, _, shape = topology.partition(":")
    dimensions = TPUS[generation].topologies[0].count("x") + 1 if generation in TPUS else 0
    if not dimensions or not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (dimensions - 1), shape):
        raise InputError(f"no topology {topology!r}: give one such as v4:8x8x4, v5e:16x16, v5p:4x8x8 or v6e:16x16")
    return generation, sorted(map(int, shape.split("x")), key=lambda n: (n == 1, n))


def accelerator_type(topology: str) -> str:
    """The type that gcloud and SkyPilot know, v5litepod-256; v4 and v5p count TensorCores, two a chip.

    It holds the number of chips alone: of the shapes with that number the engine chooses.
    """
    generation, shape = slice_shape(topology)
    return f"{TPUS[generation].accelerator}-{math.prod(shape) * TPUS[generation].counted}"


def vm_image(topology: str) -> str:
    return TPUS[slice_shape(topology)[0]].image


@dataclass(frozen=True, kw_only=True)
class Job:
    command: tyro.conf.Positional[tuple[str, ...]] = ()
    """After `--`: the command for every host, such as jaxsat reproduce saturation --scale pod --out gs://BUCKET/runs."""
    topology: str
    """One slice, as in `jaxsat plan`: v5e:16x16."""
    install: tuple[str, ...] = (".[tpu]", "gcsfs")
    """What pip installs on the hosts: this checkout, 'jaxsat[tpu] @ git+https://...@COMMIT', or a wheel gs://...whl[tpu]."""
    setup: str = ""
    """A shell command that the hosts run first, such as mounting the corpus and export JAXSAT_CACHE=..."""
    name: str = "jaxsat"
    """Of the job in the engine."""
    shares: int = 1
    """Jobs to split the sweep over: job I of N gets --share I/N, and slices of its own."""
    spot: bool = False
    """Preemptible capacity. What is preempted continues from its last checkpoint."""
    flags: str = ""
    """More flags for the engine, in one string: --flags='--network=mine --labels=a=b'."""
    dry_run: bool = False
    """Print what would be run, and run nothing."""

    def check(self) -> None:
        """Raises InputError for what no engine can run."""
        slice_shape(self.topology)
        for field in ("name", "zone", "project", "cluster"):
            value = getattr(self, field, None)
            if value is not None and not re.fullmatch(r"[a-z][a-z0-9.:]*(-[a-z0-9.:]+)*", value):
                raise InputError(f"--{field} {value!r}: lower-case letters, digits and single dashes, a letter first")
        if len(self.name) > 32 or not self.name.replace("-", "").isalnum():  # of 40 in xpk, with room for the share
            raise InputError(f"--name {self.name!r}: at most 32 letters, digits and dashes")
        for value in (*self.command, *self.install, self.setup):
            if not value.isprintable():
                raise InputError(f"{value!r} holds a line break or another control character: no engine passes it on")
        if not self.command or self.command[0] != "jaxsat":
            raise InputError("after -- comes the command: -- jaxsat reproduce saturation --scale pod --out gs://...")
        self.out()
        try:
            shlex.split(self.flags)
        except ValueError as e:
            raise InputError(f"--flags {self.flags!r}: {e}") from None
        if self.shares < 1:
            raise InputError(f"--shares {self.shares}: at least 1")

    def out(self) -> str:
        """The output directory of the command. Raises InputError unless it outlives the hosts."""
        words = [word for arg in self.command for word in arg.split("=", 1 if arg.startswith("--out=") else 0)]
        out = words[words.index("--out") + 1] if "--out" in words[:-1] else ""
        if not re.fullmatch("gs://[^/]+/.*[^/]/?", out):
            raise InputError(
                "the hosts' disks go with them: give jaxsat a directory in a bucket, --out gs://BUCKET/DIR"
            )
        return out.rstrip("/")

    def jobs(self) -> dict[str, str]:
        """Name of each job, and what its command ends in."""
        if self.shares == 1:
            return {self.name: ""}
        return {f"{self.name}-{i}": f" --share {i}/{self.shares}" for i in range(1, self.shares + 1)}

    def script(self, share: str) -> list[str]:
        """Shell lines of every host; their exit code is jaxsat's: 75 preempted, 2 the input is wrong, 1 it failed."""
        wheels = [what.partition("[")[0] for what in self.install if what.startswith("gs://")]
        what = [f"./{w.rpartition('/')[2]}" if w.startswith("gs://") else w for w in self.install]
        return [
            "set -e",
            *([self.setup] if self.setup else []),
            *(f"gcloud storage cp {shlex.quote(wheel)} ." for wheel in wheels),
            "python3 -m pip install --quiet uv",  # TPU VMs come with Python 3.10
            f"python3 -m uv venv --quiet --allow-existing --python 3.12 {HOME}",
            f"python3 -m uv pip install --quiet --python {HOME}/bin/python -- {shlex.join(what)}",
            # Hosts boot and install at their own pace; one that reboots takes minutes.
            f"export JAXSAT_DISTRIBUTED=1 JAXSAT_JOIN_TIMEOUT=1800 PATH={HOME}/bin:$PATH",
            f"exec {shlex.join(self.command)}{share}",
        ]

    def plan(self) -> str:
        """What --dry-run prints."""
        raise NotImplementedError

    def launch(self) -> int:
        """Exit code."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SlicedJob(Job):
    slices: int = 1
    """Slices that train as one, joined by the data-centre network."""
    restarts: int = 100
    """How often a job that was preempted, or lost a host, starts again."""
    zone: str | None = None
    """Such as us-west4-a; by default that of gcloud."""
    project: str | None = None
    """The cloud project; by default that of gcloud."""

    def check(self) -> None:
        super().check()
        if self.slices < 1 or self.restarts < 0:
            raise InputError(f"--slices {self.slices} --restarts {self.restarts}: at least 1 and 0")

    def where(self) -> list[str]:
        return [f"--{key}={value}" for key in ("zone", "project") if (value := getattr(self, key))]


def run(command: list[str], **options) -> subprocess.CompletedProcess:
    """Raises InputError when the program is missing, CalledProcessError when it fails."""
    if not shutil.which(command[0]):
        raise InputError(f"{command[0]} is not on the PATH: {INSTALL[command[0]]}; --dry-run does without")
    return subprocess.run(command, check=True, text=True, **options)


def main(engine: type[Job], argv: list[str] | None = None) -> int:
    """Exit codes: 0 launched, or printed; 2 the input is wrong; 1 the engine failed, and says why; 130 interrupted."""
    program = f"python -m launch.{Path(sys.modules[engine.__module__].__file__).stem}"
    job = tyro.cli(engine, prog=program, args=argv)
    try:
        job.check()
        if not job.dry_run:
            return job.launch()
        print(job.plan())
    except InputError as e:
        print(f"launch: {e}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as e:
        print(f"launch: {e.cmd[0]} ended with exit code {e.returncode}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("launch: interrupted; jobs that were requested go on", file=sys.stderr)
        return 130
    return 0
