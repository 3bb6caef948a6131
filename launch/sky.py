r"""Managed jobs of SkyPilot: one task, and a job of it for each share. SkyPilot finds a zone that has the TPUs.

    python -m launch.sky --topology v5e:16x16 --spot \
        -- jaxsat reproduce saturation --scale pod --out gs://BUCKET/saturation

SkyPilot requests preempted slices again and restarts the job there, as it does on exit code 75, and on 134, with which
JAX ends a host that has lost the others; on 1 and 2 the job ends. It does not join slices: split the sweep with
--shares, or use launch.tpu_vm or launch.xpk.
"""

import json
import re
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jaxsat.config import InputError
from launch.jobs import Job, accelerator_type, main, run, vm_image


@dataclass(frozen=True, kw_only=True)
class Sky(Job):
    """Launch SkyPilot's managed jobs."""

    zone: str | None = None
    """Such as us-west4-a; by default SkyPilot looks for one."""
    mount: str | None = None
    """A bucket with the prepared corpus, gs://BUCKET, which the hosts find at ~/bucket: a disk belongs to one zone."""

    def check(self) -> None:
        super().check()
        if self.mount is not None and not re.fullmatch("gs://[a-z0-9._-]+", self.mount):
            raise InputError(f"--mount {self.mount!r}: gs://BUCKET")

    def task(self) -> str:
        """The task as YAML. All but the script as JSON writes it, which is YAML too."""
        resources = {
            "infra": f"gcp/{self.zone.rpartition('-')[0]}/{self.zone}" if self.zone else "gcp",
            "accelerators": f"tpu-{accelerator_type(self.topology)}",
            "accelerator_args": {"runtime_version": vm_image(self.topology)},
            "use_spot": self.spot,
            "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75, 134]},
        }
        task: dict[str, object] = {"resources": resources}
        if any(what.startswith(".") for what in self.install):
            task["workdir"] = "."
        if self.mount:
            task["file_mounts"] = {"~/bucket": {"source": self.mount, "mode": "MOUNT"}}
        script = self.script(' --share "$SHARE"' if self.shares > 1 else "")
        lines = [f"{key}: {json.dumps(value)}" for key, value in task.items()]
        return "\n".join([*lines, "run: |", *(f"  {line}" for line in script), ""])

    def commands(self, path: str) -> list[list[str]]:
        """A `sky jobs launch` of the task at `path` for each share."""
        share = {name: ["--env", f"SHARE={end.split()[-1]}"] if end else [] for name, end in self.jobs().items()}
        start = ["sky", "jobs", "launch", "--yes", "--async"]
        return [[*start, "--name", name, *share[name], *shlex.split(self.flags), path] for name in share]

    def plan(self) -> str:
        path = f"{self.name}.yaml"
        return "\n".join(
            [f"# {path}, for:", *(f"# {shlex.join(c)}" for c in self.commands(path)), self.task().rstrip("\n")]
        )

    def launch(self) -> int:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{self.name}.yaml"
            path.write_text(self.task())
            for command in self.commands(str(path)):
                run(command)
        return 0


if __name__ == "__main__":
    sys.exit(main(Sky))
