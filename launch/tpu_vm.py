r"""Queued resources of Cloud TPU VMs, by gcloud: one for each share, each of one or more slices.

    python -m launch.tpu_vm --topology v5e:16x16 --zone us-west4-a --spot \
        --install 'jaxsat[tpu] @ git+https://github.com/YOU/jaxsat@COMMIT' gcsfs \
        -- jaxsat reproduce saturation --scale pod --out gs://BUCKET/saturation

The hosts start the job by themselves whenever they boot, restart it while it is preempted or loses a host, and give the
slices back when it ends. Spot slices that are taken away do not come back: this command stays, asks once a minute, and
requests them again. Interrupted, it leaves the job alone; the same command again continues to watch.
"""

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field

from jaxsat.config import InputError
from launch.jobs import SlicedJob, accelerator_type, main, run, vm_image

PERIOD = 60  # seconds
GCLOUD = ["gcloud", "compute", "tpus", "queued-resources"]
# 134 is a host that another one left alone, 137 one that ran out of memory, 143 one that is shut down.
STARTUP = """\
#!/bin/bash
export HOME="${{HOME:-/root}}"
cd "$HOME" && exec >>"$HOME/jaxsat.log" 2>&1
for start in $(seq {starts}); do
(
{script}
)
code=$?
echo "exit code $code"
[ $code -eq 75 ] || [ $code -ge 128 ] || break
done
gcloud storage cp "$HOME/jaxsat.log" {logs}-"$(hostname)".log
metadata() {{ curl -sf -H 'Metadata-Flavor: Google' \
"http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"; }}
if [ "$(metadata agent-worker-number)" = 0 ] && ! metadata tpu-env | grep -q "^MEGASCALE_SLICE_ID: '[1-9]"; then
sleep 60
{delete}
fi
"""


@dataclass(frozen=True, kw_only=True)
class TpuVm(SlicedJob):
    """Launch on TPU VMs by gcloud's queued resources."""

    zone: str = field()
    """Such as us-west4-a."""

    def check(self) -> None:
        super().check()
        if any(what.startswith((".", "/")) for what in self.install):
            raise InputError(
                "queued resources start without your checkout: --install 'jaxsat[tpu] @ git+https://...@COMMIT' gcsfs, "
                "or a wheel in a bucket, gs://BUCKET/jaxsat-VERSION-py3-none-any.whl[tpu]"
            )

    def logs(self, name: str) -> str:
        return f"{self.out()}-logs/{name}"  # beside the output directory: a new one must be empty

    def create(self, name: str, share: str) -> list[str]:
        startup = STARTUP.format(
            starts=self.restarts + 1,
            script="\n".join(self.script(share)),
            logs=shlex.quote(self.logs(name)),
            delete=shlex.join([*self.delete(name), "--async"]),
        )
        # gcloud splits at commas, or at what stands between carets: at something that the script does not hold.
        comma = next("@" * n for n in range(1, len(startup)) if "@" * n not in startup)
        nodes = [f"--node-id={name}"]
        if self.slices > 1:
            nodes = [f"--node-count={self.slices}", f"--node-prefix={name}"]
        return [*GCLOUD, "create", name, *self.where(), f"--accelerator-type={accelerator_type(self.topology)}",
                f"--runtime-version={vm_image(self.topology)}", *nodes,
                *(["--spot"] if self.spot else []), *shlex.split(self.flags), "--quiet",
                f"--metadata=^{comma}^startup-script={startup}"]  # fmt: skip

    def delete(self, name: str) -> list[str]:
        return [*GCLOUD, "delete", name, *self.where(), "--force", "--quiet"]

    def list(self) -> list[str]:
        return [*GCLOUD, "list", *self.where(), "--format=value(name.basename(),state.state)"]

    def plan(self) -> str:
        jobs = self.jobs().items()
        lines = [shlex.join(self.create(name, share)) for name, share in jobs]
        lines += ["# then once a minute, until they are gone:", shlex.join(self.list())]
        lines += ["# and when one is SUSPENDED, which is preempted, before it is created again:"]
        return "\n".join(lines + [shlex.join(self.delete(name)) for name, _ in jobs])

    def launch(self) -> int:
        jobs, seen, code = self.jobs(), {}, 0
        while jobs:
            try:
                lines = run(self.list(), stdout=subprocess.PIPE).stdout.splitlines()
            except subprocess.CalledProcessError:
                if not seen:  # else it is the network, for a while
                    raise
                time.sleep(PERIOD)
                continue
            states = dict(line.split("\t") for line in lines)
            for name, share in list(jobs.items()):
                before, state = seen.get(name), states.get(name)
                if state == "SUSPENDED":
                    say(f"{name}: preempted")
                    run(self.delete(name))
                if state == "SUSPENDED" or before is None and state is None:
                    run(self.create(name, share))
                    state = "requested"
                elif state == "FAILED":
                    say(f"{name}: FAILED; {shlex.join([*GCLOUD, 'describe', name, *self.where()])} says why")
                    code = 1
                    del jobs[name]
                elif state is None and before != "requested":  # which may take a while to be listed
                    say(f"{name}: ended; its hosts' logs are {self.logs(name)}-*.log")
                    del jobs[name]
                seen[name] = state or before
                if name in jobs and seen[name] != before:
                    say(f"{name}: {seen[name]}")
            time.sleep(PERIOD if jobs else 0)
        return code


def say(line: str) -> None:
    print(time.strftime("%F %T"), line, flush=True)


if __name__ == "__main__":
    sys.exit(main(TpuVm))
