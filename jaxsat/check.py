"""Everything in an output directory is read, and what is damaged is said."""

from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

from etils import epath

from jaxsat import disk
from jaxsat.checkpoints import Store
from jaxsat.config import InputError
from jaxsat.directory import Directory

T = TypeVar("T")


def check(
    out: epath.PathLike, progress: Callable[[str, float, str], None] = lambda stage, fraction, what: None
) -> Iterator[str]:
    """A line a fault: files that are not as they were written, arrays that are not those that the devices held, and
    what cannot be read. Changes nothing. `progress` hears of two stages, files and arrays. Raises InputError where
    there is no study."""
    out = epath.Path(out)
    if not (out / "sweep.json").exists():
        raise InputError(f"{out} holds no sweep.json: give the output directory of a study, such as runs/saturation")
    named: set[str] = set()
    for path, fault in disk.faults(out, lambda done, what: progress("files", done, what)):
        named.add(str(path))
        yield fault

    def reading(f: Callable[[], T]) -> Generator[str, None, T | None]:
        try:
            return f()
        except InputError as e:
            if not any(str(e).startswith(path) for path in named):
                yield str(e)

    if directory := (yield from reading(lambda: Directory.open(out))):
        yield from reading(directory.measurements)
        for id in sorted(directory.runs):
            yield from reading(lambda id=id: directory.states([id]))
            yield from reading(lambda id=id: directory.launches([id]))
            yield from reading(lambda id=id: directory.account([id]))
    folders = sorted((out / "checkpoints").iterdir()) if (out / "checkpoints").exists() else []
    streamed = {run.id for run in directory.runs.values() if run.imported.name} if directory else set()
    folders = [folder for folder in folders if folder.name not in streamed or any(folder.iterdir())]
    for i, folder in enumerate(folders):
        store = yield from reading(lambda folder=folder: Store(folder, alone=True))
        for j, step in enumerate(steps := store.steps if store else ()):
            progress("arrays", (i + j / len(steps)) / len(folders), f"{folder.name}, step {step}")
            if not any(path.startswith(f"{folder / str(step)}/") for path in named):
                yield from reading(lambda store=store, step=step: store.verify(step))
        for aside in sorted(folder.glob("*.damaged*")):
            yield f"{aside} was kept aside: {(aside / 'why.txt').read_text()}"
