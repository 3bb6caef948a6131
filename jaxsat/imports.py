"""Series of others into a directory: each step is read, hashed and placed, then kept as a checkpoint, or measured and
dropped. What is done is told by what is on disk, so an import that was stopped goes on."""

import dataclasses
import io
import json
from collections.abc import Callable, Collection, Iterator, Sequence

import jax
import numpy as np
import pandas as pd
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxsat import corpus as corpora
from jaxsat import experiment as experiments
from jaxsat import hosts, interop, lease, measure, model, parallel
from jaxsat.checkpoints import Store
from jaxsat.config import InputError, Layout, Run, dumps, flatten, unknown
from jaxsat.directory import Directory
from jaxsat.disk import write_atomically
from jaxsat.measure import Measure, table
from jaxsat.measure.packs import measured
from jaxsat.parallel import make_mesh, pack_layout, state_shardings
from jaxsat.series import Import, check_hashes, missing_steps, opened
from jaxsat.stop import Stop
from jaxsat.sweep import Pack
from jaxsat.train import read_metrics

SAMPLE = 2**16  # numbers of an embedding of which two steps are compared


def bring(
    out: epath.PathLike,
    asked: Import,
    measures: Sequence[str],
    layout: Layout,
    progress: Callable[[str, float, str], None],
) -> list[str]:
    """Imports a series into an output directory, which is begun where there is none; with the names of `measures` each
    step is measured and dropped. What is odd about it, in lines."""
    directory = Directory.open(out)
    stream = _named(measures)
    directory.know_settings(parallel.number_settings())
    run = resolve(directory, asked)
    directory.grow([run], lambda run, n_runs: (1, 1))
    directory.runs[run.id] = run
    hosts.first(directory.save)
    with (
        lease.held(directory.path, "train"),
        Stop("stopped in an import") as stop,
        table.Writer(directory.path / "measurements", f"import-{asked.name}") as writer,
    ):
        for i, n, rows in imported(directory, asked, run, stream, layout):
            progress("import", i / n, f"{asked.name}, {i} of {n} steps")
            if len(rows):
                writer.add(rows)
            stop.check()
    return notices(directory, run)


def _named(names: Sequence[str]) -> list[Measure]:
    """The measures of these names; of an experiment's path, all of its."""
    if [name for name in names if name.endswith(".py")]:
        found = [m for name in names for m in experiments.load(name, "laptop").measures]
        if best := [m.name for m in found if m.at == "best"]:
            raise InputError(f"measure {best[0]!r} is of the best step, which is not known while steps come and go")
        return found
    known = {m.name: m for m in measure.standard()}
    for name in names:
        if name not in known:
            raise unknown("measure", name, known)
    return [known[name] for name in names]


def resolve(directory: Directory, asked: Import) -> Run:
    """The run that an import is in a directory: what is there, and where its sources are at hand, what they add. Raises
    InputError for sources that are nowhere."""
    there = directory.runs.get(asked.id)
    have = {line["step"] for line in read_metrics(directory.path / "runs" / asked.id) if "hash" in line}
    try:
        steps = {*asked.found(), *have}
    except InputError:
        if there is None or not have or not set(asked.steps) <= have:
            raise
        steps = have
    if there and have:
        hosts.first(lambda: _check_sources(directory, asked))
        return _settled(asked, there, directory).run(there.model, steps)
    first = asked.found()[min(steps)]
    if first.startswith(interop.HUB):
        return asked.run(interop.peek(first), steps)
    with opened(first) as source:  # what is wrong with its weights is said before anything is written
        return asked.run(source.config, steps)


def _check_sources(directory: Directory, asked: Import) -> None:
    """Raises InputError where a folder does not hold any more what was imported of it."""
    try:
        found = asked.found()
    except InputError:  # gone, which is no fault
        return
    for line in read_metrics(directory.path / "runs" / asked.id):
        place = found.get(line["step"], interop.HUB)
        if place.startswith(interop.HUB) or "fingerprint" not in line:
            continue
        with opened(place) as source:
            if source.fingerprint != line["fingerprint"]:
                raise InputError(
                    f"{place} is not what it was when step {line['step']} was imported into {directory.path} as "
                    f"{asked.name}: give the series another name, or choose another directory"
                )


def _settled(asked: Import, there: Run, directory: Directory) -> Import:
    """With what was told when its first steps were imported. Raises InputError for something else: their rows stand."""
    told = {"tokens_per_step": there.tokens_per_step, "data": there.data}
    unsaid = {"tokens_per_step": asked.tokens_per_step == 1, "data": not asked.data.corpus}
    for key, was in told.items():
        now = getattr(asked, key)
        if not unsaid[key] and now != was and (key != "data" or was.corpus):
            raise InputError(
                f"{asked.name} was imported into {directory.path} with {key} = {was}, not {now}: leave it out, or give "
                "the series another name"
            )
    return dataclasses.replace(asked, **{key: was for key, was in told.items() if unsaid[key]})


def imported(
    directory: Directory,
    asked: Import,
    run: Run,
    stream: Sequence[Measure] = (),
    layout: Layout = Layout(),
    needed: Collection[int] | None = None,
) -> Iterator[tuple[int, int, pd.DataFrame]]:
    """(steps done, of how many, rows) after each step that is not in the directory yet; of those that were here and
    were dropped the `needed` ones, by default all. With measures to `stream`, after each step that they have not seen:
    its rows, and its weights are dropped again. All hosts take the same steps.

    Raises InputError for a step of another model, one that is no more what it was, and one with the weights of another.
    """
    log, pack = directory.path / "runs" / run.id, Pack((run,))
    lines = {line["step"]: line for line in read_metrics(log)}
    done = set(map(tuple, hosts.first(lambda: _seen(directory, run)))) if stream else set()
    at = lambda m: {"every": run.imported.steps, "last": run.imported.steps[-1:]}.get(m.at, m.at)
    asked_of = lambda step: [m for m in stream if m.runs(run) and step in at(m)]
    todo = {
        step: [(m, [run]) for m in asked_of(step) if (step, m.key, m.version) not in done]
        for step in run.imported.steps
    }
    corpus: corpora.Corpus | None = None
    mesh = make_mesh(pack, Layout(**hosts.first(lambda: dataclasses.asdict(pack_layout(pack, layout)))))
    with Store(directory.path / "checkpoints" / run.id, [run.id], writable=True) as store:
        unneeded = lambda step: needed is not None and step not in needed
        here = lambda step: step in lines and (not todo[step] if stream else step in store.steps or unneeded(step))
        wanted = hosts.first(lambda: [step for step in run.imported.steps if not here(step)])
        found = asked.found() if wanted else {}
        for i, step in enumerate(wanted):
            if step not in found:
                raise InputError(f"{asked.name}: step {step} has not been imported, and is not in its source any more")
            if step not in store.steps or step not in lines:
                lines[step] = _bring(asked, run, step, found[step], lines, mesh, store, log)
            rows = table.empty()
            if todo[step]:
                if run.data.corpus and corpus is None:  # whose tokenizer comes with the first step
                    corpus = directory.text(run)
                    hosts.first(directory.save)
                ((_, rows),) = measured(pack, store, corpus, {step: todo[step]}, layout, log.parent)
            yield i + 1, len(wanted), rows

            def note() -> None:
                whole = "".join(json.dumps(lines[step]) + "\n" for step in sorted(lines))
                write_atomically(log / "config.json", dumps(run))
                write_atomically(log / "metrics.jsonl", whole)

            hosts.first(note)
            if stream:
                store.drop(step)


def pending(directory: Directory, run: Run) -> list[str]:
    """What is to be imported of a run, in a line; none where it is ours, or all here."""
    here = {line["step"] for line in read_metrics(directory.path / "runs" / run.id)}
    new = [step for step in run.imported.steps if step not in here]
    return [f"import {len(new)} steps of {run.imported.name}"] if new else []


def _seen(directory: Directory, run: Run) -> list[list]:
    rows = directory.measurements()
    rows = rows[rows["series"] == run.id]
    return [list(key) for key in rows[["step", "measure", "version"]].drop_duplicates().itertuples(index=False)]


def _bring(asked: Import, run: Run, step: int, place: str, lines: dict, mesh: Mesh, store: Store, log: epath.Path):
    """Reads a step into the store; its line of the log."""
    with opened(place) as source:
        if source.config != run.model:
            theirs, ours = flatten(source.config), flatten(run.model)
            key = next(key for key in ours if ours[key] != theirs[key])
            raise InputError(f"{place} is not the model of {asked.name}: {key} is {theirs[key]}, not {ours[key]}")
        if source.tokenizer and not (log / "tokenizer.json").exists():
            hosts.first(lambda: write_atomically(log / "tokenizer.json", source.tokenizer.read_text()))
        params_1 = _placed(source, mesh)
        line = {"step": step, "tokens": step * run.tokens_per_step, "hash": source.content_hash, "source": place}
        line["fingerprint"] = source.fingerprint
    if (was := lines.get(step, line)["hash"]) != line["hash"]:
        raise InputError(
            f"{place} is not what it was when step {step} was imported: its hash is {line['hash']}, was {was}"
        )
    check_hashes(asked.name, {step: line["hash"] for step, line in (lines | {step: line}).items()})
    if step not in store.steps:
        store.save(step, {"params": params_1}, 0.0)
        store.close()
    if jax.process_count() == 1:  # a part of the table would do no harm, but is not worth the talk
        line |= _descent(params_1["embedding"][0], log / "first_step.npy", step == run.imported.steps[0])
    return line


def _placed(source: interop.Source, mesh: Mesh) -> model.Params:
    """The parameters with a leading axis of one run, as a pack of it lies over the mesh."""
    one = jax.eval_shape(lambda: model.init(source.config, jax.random.key(0)))
    stacked = state_shardings(mesh, jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), one))
    alone = jax.tree.map(lambda s: NamedSharding(mesh, PartitionSpec(*s.spec[1:])), stacked)
    return jax.jit(lambda tree: jax.tree.map(lambda x: x[None], tree), out_shardings=stacked)(source.params(alone))


def _descent(embedding_VxD: jax.Array, path: epath.Path, is_first: bool) -> dict[str, float]:
    """The cosine of this step's embedding and the first step's, over SAMPLE of their numbers, for `notices`."""
    flat = np.asarray(embedding_VxD, np.float32).ravel()
    sample = flat[:: max(1, flat.size // SAMPLE)]
    if is_first:
        np.save(content := io.BytesIO(), sample)
        write_atomically(path, content.getvalue())
    if not path.exists():
        return {}
    with path.open("rb") as f:
        first = np.load(f, allow_pickle=False).astype(np.float64)
    return {"cosine_to_first": float(first @ sample / np.sqrt((first @ first) * (sample.astype(float) @ sample)))}


def notices(directory: Directory, run: Run) -> list[str]:
    """What is odd about an imported series, in lines: equal first steps, missing ones, one that does not descend from
    the first."""
    lines = {line["step"]: line for line in read_metrics(directory.path / "runs" / run.id) if "hash" in line}
    name = run.imported.name
    said = check_hashes(name, {step: line["hash"] for step, line in lines.items()})
    if missing := missing_steps(list(lines)):
        said.append(f"{name}: steps {', '.join(map(str, missing))} are missing")
    n = run.model.vocab_size * run.model.width
    least = 4 / np.sqrt(n / max(1, n // SAMPLE))  # of four standard deviations, were the two independent
    for step, line in lines.items():
        if line.get("cosine_to_first", 1.0) < least:
            said.append(f"{name}: step {step} does not descend from step {min(lines)}, as far as its embedding tells: "
                        f"their cosine is {line['cosine_to_first']:.4f}, below {least:.4f}")  # fmt: skip
    return said
