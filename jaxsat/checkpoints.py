"""Checkpoints behind one door: orbax, one directory a pack, steps beneath it.

    DIR/checkpoints/<pack id>/<step>/{params, rest}

`params` is read alone by measurements; `rest` holds what training needs to go on. A step counts once it is complete;
an interrupted save leaves a temporary directory that is swept away, and the step before it restores.
"""

import logging
from collections.abc import Sequence
from typing import Any

from etils import epath
from orbax.checkpoint import v1 as ocp

from jaxsat.config import InputError

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every save at INFO and WARNING


class Store:
    """The checkpoints of one pack: the runs `run_ids`, stacked on a leading axis K in this order.

    Raises InputError when the directory holds the checkpoints of other runs, or things that are no checkpoints.
    """

    def __init__(self, directory: epath.PathLike, run_ids: Sequence[str], writable: bool = True):
        self.directory = epath.Path(directory)
        self.unreadable: dict[int, str] = {}
        found = sorted(p.name for p in self.directory.iterdir()) if self.directory.exists() else []
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            custom_metadata={"runs": list(run_ids)},
            cleanup_tmp_directories=writable,
        )
        if self.steps:
            owner = (self._checkpointer.root_metadata().custom_metadata or {}).get("runs")
            if owner != list(run_ids):
                raise InputError(
                    f"{self.directory} holds checkpoints of other runs ({owner}): choose another directory"
                )
        elif foreign := [n for n in found if "orbax-checkpoint-tmp" not in n and not n.startswith("_")]:
            raise InputError(
                f"{self.directory} holds no complete checkpoint but {', '.join(foreign[:5])}: "
                "not starting fresh over it; move it away, or choose another directory"
            )

    @property
    def steps(self) -> list[int]:
        """Complete steps, ascending."""
        return sorted(c.step for c in self._checkpointer.checkpoints)

    def save(self, step: int, state: dict[str, Any], seconds: float) -> None:
        """Saves in the background; `state` may be donated at once. `seconds`: wall time spent so far."""
        parts = {"params": state["params"], "rest": {k: v for k, v in state.items() if k != "params"}}
        self._checkpointer.save_checkpointables_async(
            step, parts, custom_metadata={"seconds": seconds}, force=True, overwrite=step in self.unreadable
        )

    def latest(self, abstract: dict[str, Any]) -> tuple[dict[str, Any], float] | None:
        """(state, seconds spent) of the newest step that can be read as `abstract`; None where there is none yet.

        Steps that cannot be read are kept in `unreadable`, with the reason; when all are, raises InputError.
        """
        wanted = {"params": abstract["params"], "rest": {k: v for k, v in abstract.items() if k != "params"}}
        for step in reversed(self.steps):
            try:
                parts = self._checkpointer.load_checkpointables(step, wanted)
                seconds = (self._checkpointer.metadata(step).custom_metadata or {})["seconds"]
                return {"params": parts["params"], **parts["rest"]}, seconds
            except (OSError, ValueError, KeyError) as e:
                self.unreadable[step] = str(e).splitlines()[0][:200]
        if self.unreadable:
            found = "; ".join(f"step {s}: {why}" for s, why in self.unreadable.items())
            raise InputError(f"no checkpoint in {self.directory} can be read ({found}): move it away to start fresh")
        return None

    def params(self, step: int, abstract: Any) -> Any:
        """The parameters of every run at `step`, as the ShapeDtypeStructs `abstract` (with shardings) say."""
        return self._checkpointer.load_checkpointables(step, {"params": abstract})["params"]

    def close(self) -> None:
        self._checkpointer.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
