r"""Workloads on a GKE cluster with TPU node pools, by xpk: one for each share, each of one or more slices.

    python -m launch.xpk --topology v5e:16x16 --cluster CLUSTER --zone us-west4-a \
        -- jaxsat reproduce saturation --scale pod --out gs://BUCKET/saturation

xpk puts this checkout into the image, unless --install names something else. The workload restarts on exit code 75, and
on those of a host that was killed or left alone (xpk's own list: 42 and 127 to 255); on 1 and 2 it ends.
"""

import shlex
import sys
from dataclasses import dataclass

from jaxsat.config import InputError
from jaxsat.machine import TPUS
from launch.jobs import SlicedJob, main, run, slice_shape

IMAGE = "python:3.12"


@dataclass(frozen=True, kw_only=True)
class Xpk(SlicedJob):
    """Launch on GKE by xpk."""

    cluster: str
    """Made by `xpk cluster create`, with --spot there for spot capacity."""

    def check(self) -> None:
        super().check()
        if any(what.startswith("gs://") for what in self.install):
            raise InputError("the image has no gcloud to copy a wheel: leave --install out, for this checkout, or git+")

    def create(self, name: str, share: str) -> list[str]:
        generation, shape = slice_shape(self.topology)
        # One line, for xpk writes it into YAML; Kubernetes expands $(NAME) and turns $$ into $, even between quotes.
        script = "; ".join(self.script(share)).replace("$", "$$")
        checkout = any(what.startswith(".") for what in self.install)
        return ["xpk", "workload", "create", f"--workload={name}", f"--cluster={self.cluster}", *self.where(),
                f"--tpu-type={TPUS[generation].accelerator}-{'x'.join(map(str, shape))}", f"--num-slices={self.slices}",
                *([f"--base-docker-image={IMAGE}", "--script-dir=."] if checkout else [f"--docker-image={IMAGE}"]),
                f"--max-restarts={self.restarts}", "--restart-on-exit-codes=75", *(["--spot"] if self.spot else []),
                *shlex.split(self.flags), f"--command={script}"]  # fmt: skip

    def plan(self) -> str:
        return "\n".join(shlex.join(self.create(name, share)) for name, share in self.jobs().items())

    def launch(self) -> int:
        for name, share in self.jobs().items():
            run(self.create(name, share))
        return 0


if __name__ == "__main__":
    sys.exit(main(Xpk))
