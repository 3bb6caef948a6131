"""Measures of the checkpoints of one pack: parameters are read once a step, traced measures run over all devices."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import pandas as pd
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from jaxsat import hosts, model
from jaxsat.checkpoints import Damaged, Store, cut_head
from jaxsat.config import DataConfig, InputError, Layout, ModelConfig, Run
from jaxsat.corpus import Corpus, prepare
from jaxsat.evaluate import exact
from jaxsat.measure import table
from jaxsat.measure.measure import NO_TEXT, Checkpoint, Heldout, Measure, NoText, heldout, values
from jaxsat.parallel import abstract_like, make_mesh, over_runs, pack_layout, per_run, put, state_shardings
from jaxsat.sweep import Pack

Todo = Mapping[int, Sequence[tuple[Measure, Sequence[Run]]]]  # step -> what is measured there, of which runs


def measured(
    pack: Pack,
    store: Store,
    corpus: Corpus | None,
    todo: Todo,
    layout: Layout = Layout(),
    folder: epath.Path | None = None,
) -> Iterator[tuple[int, pd.DataFrame]]:
    """(step, rows of the table that this host is to write) for each step of `todo`, ascending. Without a corpus, only
    what needs no text can be measured. `folder`: where the tokenizers of its runs lie, DIR/runs.

    A step that is damaged is set aside.

    Parameters lie over the devices as in training, and the held-out rows over axis `data`. Products are taken in full
    float32, whatever training did (C8: TF32 and bf16 passes move a loss in its fourth digit).
    """
    chosen = Layout(**hosts.first(lambda: dataclasses.asdict(pack_layout(pack, layout))))
    mesh = make_mesh(pack, chosen)
    rank_K = put(np.array([run.model.rank for run in pack.runs], np.int32), per_run(mesh))
    over_data = partial(put, sharding=NamedSharding(mesh, PartitionSpec(None, "data")))
    corpora = {None: corpus} | _other_texts(pack, corpus, todo, folder)
    texts = {data: heldout(c, over_data, mesh.shape["data"]) if c else NO_TEXT for data, c in corpora.items()}
    finish: Callable[[], pd.DataFrame] | None = None
    before = -1
    for step in sorted(todo):
        try:
            shapes = store.shapes(step)
            abstract = abstract_like(shapes, state_shardings(mesh, shapes))
            params_K = store.params(step, abstract)  # read while the devices still measure the one before
        except Damaged as e:
            store.set_aside(step, e.why, "it is not measured")
            continue
        if finish:
            yield before, finish()
        traced = {m: runs for m, runs in todo[step] if m.traced}
        with exact():
            found = {m: _traced(m.of, pack.model, mesh, params_K, rank_K, texts[m.text]) for m in traced}
        if jax.process_count() > 1:  # reading asks the other processes: never two programs of several at once
            jax.block_until_ready(list(found.values()))
        plain = [(m, run) for m, runs in todo[step] if not m.traced for run in runs]
        finish = partial(_finish, pack, store, corpora, folder, step, params_K, traced, found, plain)
        before = step
    if finish:
        yield before, finish()


def _other_texts(pack: Pack, corpus: Corpus | None, todo: Todo, folder: epath.Path | None) -> dict[DataConfig, Corpus]:
    """Those that measures bring along, as the tokenizer of the pack's runs cuts them."""
    asked = dict.fromkeys(m.text for at in todo.values() for m, _ in at if m.text)
    if not asked:
        return {}
    tokenizer = corpus.tokenizer if corpus else folder and folder / pack.runs[0].id / "tokenizer.json"
    if tokenizer is None or not tokenizer.exists():
        text = ", ".join(next(iter(asked)).corpus)
        raise InputError(f"the loss on {text} needs a tokenizer, and run {pack.runs[0].id} has no tokenizer.json")
    return {data: text_of(data, tokenizer, pack.model) for data in asked}


def text_of(data: DataConfig, tokenizer: os.PathLike, config: ModelConfig) -> Corpus:
    """The text of a measure, on every host: all of it held out, as this tokenizer cuts it."""
    whole = dataclasses.replace(data, tokenizer=str(tokenizer), heldout_fraction=1.0)
    return hosts.one_after_the_other(lambda: prepare(whole, config.vocab_size, config.context))


def own(pack: Pack, params_K: Any, run: Run) -> model.Params:
    """The parameters of one run of a pack, a factored head cut to its own rank, on one device of this host."""
    k, device = pack.runs.index(run), jax.local_devices()[0]
    return cut_head(run.model, jax.device_put(jax.tree.map(lambda x: x[k], params_K), device))


@partial(jax.jit, static_argnames=("of", "config", "mesh"))
def _traced(of, config: ModelConfig, mesh, params_K, rank_K, text: Heldout | NoText) -> dict[str, jax.Array]:
    one = lambda params, rank, text: dict(of(Checkpoint(config, params, rank, text)))
    return over_runs(mesh, one, shared=1)(params_K, rank_K, text)


def _finish(pack, store, corpora, folder, step, params_K, traced, found, plain) -> pd.DataFrame:
    """Waits for what is measured at a step, measures the rest, and makes rows of it."""
    frames = []
    for measure, runs in traced.items():
        value_K = multihost_utils.process_allgather(found[measure], tiled=True)
        if jax.process_index() == 0:
            for run in runs:
                k = pack.runs.index(run)
                frames.append(_rows(measure, run, step, {name: value[k] for name, value in value_K.items()}))
    mine = plain[jax.process_index() :: jax.process_count()]

    def measure_mine() -> None:
        alone_K = params_K
        if mine and jax.process_count() > 1:  # each host reads alone what it measures alone
            with Store(store.directory, store.run_ids, alone=True) as alone:
                alone_K = alone.params(step)
        used = {measure.text: corpora[measure.text] for measure, _ in mine}  # on one device, as the parameters are
        texts = {data: heldout(corpus) if corpus else NO_TEXT for data, corpus in used.items()}
        for measure, run in mine:
            params, text, corpus = own(pack, alone_K, run), texts[measure.text], used[measure.text]
            c = Checkpoint(run.model, params, run.model.rank, text, run, step, step * run.tokens_per_step, corpus,
                           folder and folder / run.id / "tokenizer.json")  # fmt: skip
            with exact():
                frames.append(_rows(measure, run, step, measure.of(c)))

    hosts.together(measure_mine)  # who works is waited for, however long
    return pd.concat(frames, ignore_index=True) if frames else table.empty()


def _rows(measure: Measure, run: Run, step: int, found: Any) -> pd.DataFrame:
    rows = values(found, measure.name)
    one = rows.groupby("metric")["metric"].transform("size") == 1
    rows = rows[np.isfinite(rows["value"].astype(float)) | one]  # a lone number that is none is said; a vector is cut
    return table.rows(run.id, step, step * run.tokens_per_step, measure.key, measure.version, rows)
