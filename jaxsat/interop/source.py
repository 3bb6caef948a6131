"""A model in a folder of Hugging Face's kind, checked when it is opened and read one tensor at a time."""

import collections
import math
import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import xxhash
from etils import epath

from jaxsat import machine, model
from jaxsat.config import InputError
from jaxsat.interop import names, tensors
from jaxsat.interop.families import read_config


class Source:
    """`config` of the model; `tokenizer`, its tokenizer.json, or None; `notes`, what differs from the folder, in words.

    Opening reads config.json and the headers, and raises InputError for all that can be wrong with them: no weights,
    pickles, a family or a key that is not known, truncated files, a tensor that is missing, too many or of another
    shape.
    """

    def __init__(self, folder: epath.PathLike):
        self.folder = epath.Path(folder)
        found = tensors.find(self.folder)
        path = self.folder / "config.json"
        self.family, self.config, self.notes = read_config(tensors.read_json(path), str(path))
        file = self.folder / "tokenizer.json"
        self.tokenizer = file if file.exists() else None
        self._tensors: dict[str, tensors.Tensor] = {}
        self._digests: dict[str, str] = {}
        if self.config.depth > len(found):
            raise InputError(f"{path} says {self.config.depth} layers, and there are {len(found)} tensors beside it")
        self._entries = list(names.entries(self.family, self.config))
        for entry in self._entries:
            for name in entry.names(self.config):
                self._tensors[name] = self._taken(found, entry, name)
        # A tied head may be written out once more.
        tied = self.config.tied_head and next((n for n in ("lm_head.weight", "embed_out.weight") if n in found), None)
        self._copy = found.pop(tied) if tied else None
        if extra := sorted(name for name in found if not names.BUFFERS.search(name)):
            raise InputError(
                f"{self.folder}: tensor {extra[0]} is no part of the {self.family} of {self.config.depth} layers that "
                "config.json describes"
            )

    def _taken(self, found: dict[str, tensors.Tensor], entry: names.Entry, name: str) -> tensors.Tensor:
        tensor = next((found.pop(n) for n in entry.spellings(name) if n in found), None)
        if tensor is None:
            raise InputError(f"{self.folder} has no tensor {name}, which a {self.family} of this config.json has")
        if tensor.dtype not in tensors.DTYPES:
            raise InputError(f"{self.folder}: tensor {name} is {tensor.dtype}: {', '.join(tensors.DTYPES)} can be read")
        if tensor.shape != entry.shape:
            raise InputError(f"{self.folder}: tensor {name} is {tensor.shape}, config.json says {entry.shape}")
        return tensor

    def params(self, shardings: Any = None) -> model.Params:
        """The parameters, float32, placed by `shardings`: a tree of their shape or one for all, by default this host's
        first device. Of many hosts each reads all files and keeps what is its own.

        Through the host's memory pass a tensor a thread, and what becomes of two tensors with all their layers.
        Raises InputError as opening does, and where a tied head is not the embedding.
        """
        shapes = names.shapes(self.config)
        shardings = shardings or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        if isinstance(shardings, jax.sharding.Sharding):
            shardings = jax.tree.map(lambda _: shardings, shapes)
        found: dict[names.Path, jax.Array] = {}
        with _Pool() as pool:
            begun: collections.deque[tuple[dict[names.Path, _Placed], list[Future]]] = collections.deque()

            def finish() -> None:
                placed, jobs = begun.popleft()
                for job in jobs:
                    job.result()
                found.update({path: each.array() for path, each in placed.items()})

            for entry in self._entries:
                types = {tensors.DTYPES[self._tensors[name].dtype] for name in entry.names(self.config)}
                dtype = types.pop() if len(types) == 1 else np.dtype(np.float32)
                placed = {path: _Placed(_at(shapes, path), _at(shardings, path), dtype) for path in entry.paths}
                stacked = "{}" in entry.name

                def read(buffer_N: np.ndarray, i: int, name: str, entry=entry, placed=placed, stacked=stacked) -> None:
                    x = self._read(name, buffer_N)
                    for each, part in zip(placed.values(), entry.read(x)):
                        each.put((i,) if stacked else (), part)

                layers = [(i, name, self._tensors[name].size) for i, name in enumerate(entry.names(self.config))]
                begun.append((placed, [pool.submit(size, read, i, name) for i, name, size in layers]))
                if len(begun) > 1:
                    finish()
            while begun:
                finish()
        self._check_tied()
        out: model.Params = {}
        for path, array in found.items():
            node = out
            for key in path[:-1]:
                node = node.setdefault(key, {})
            node[path[-1]] = array
        return out

    @property
    def content_hash(self) -> str:
        """Of names, types, shapes and bytes of the parameters, whatever files they lie in. Reads what has not been."""
        with _Pool() as pool:
            read = lambda buffer_N, name: self._read(name, buffer_N)
            unread = [(name, t.size) for name, t in self._tensors.items() if name not in self._digests]
            for job in [pool.submit(size, read, name) for name, size in unread]:
                job.result()
        self._check_tied()
        all_ = xxhash.xxh3_128()
        for name, t in sorted(self._tensors.items()):
            all_.update(f"{name} {t.dtype} {t.shape} {self._digests[name]}\n".encode())
        return all_.hexdigest()

    @property
    def fingerprint(self) -> str:
        """Of names, types, shapes, and of the first and the last kilobyte of every parameter: for a look at whether a
        folder still holds what it held, where `content_hash` would read all of it."""
        ends = xxhash.xxh3_128()
        for name, t in sorted(self._tensors.items()):
            with t.file.open("rb") as file:
                for start in (t.start, max(t.start, t.start + t.size - 1024)):
                    file.seek(start)
                    ends.update(file.read(min(1024, t.size)))
            ends.update(f"{name} {t.dtype} {t.shape}\n".encode())
        return ends.hexdigest()

    def _read(self, name: str, buffer_N: np.ndarray) -> np.ndarray:
        x = self._tensors[name].read(buffer_N)
        self._digests[name] = xxhash.xxh3_128_hexdigest(buffer_N[: x.nbytes])
        return x

    def _check_tied(self) -> None:
        if self._copy is None:
            return
        name = self._entries[0].names(self.config)[0]
        copy, table = self._copy, self._tensors[name]
        same = (copy.dtype, copy.shape) == (table.dtype, table.shape)
        raw_N = np.empty(copy.size, np.uint8)
        if same:
            copy.read(raw_N)
        if not same or xxhash.xxh3_128_hexdigest(raw_N) != self._digests[name]:
            raise InputError(
                f"{self.folder}: config.json ties the head to the embedding, and the head that is there differs from it"
            )
        self._copy = None


class _Placed:
    """An array on the host, of the type that it has in the file, in the parts that the devices of its sharding will
    hold."""

    def __init__(self, shape: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding, dtype: np.dtype):
        self.shape, self.sharding = shape.shape, sharding
        self.where = sharding.addressable_devices_indices_map(shape.shape)
        bounds = {device: tuple(s.indices(n)[:2] for s, n in zip(at, self.shape)) for device, at in self.where.items()}
        self.bounds = bounds
        self.parts = {at: _aligned(tuple(b - a for a, b in at), dtype) for at in {*bounds.values()}}

    def put(self, layer: tuple[int, ...], x: np.ndarray) -> None:
        """Of a stacked array one layer, else the whole."""
        n = len(layer)
        for at, part in self.parts.items():
            if all(a <= i < b for i, (a, b) in zip(layer, at)):
                own = x[tuple(slice(a, b) for a, b in at[n:])]
                _copy(part[tuple(i - a for i, (a, _) in zip(layer, at))], own)

    def array(self) -> jax.Array:
        arrays = [jax.device_put(self.parts[at], device) for device, at in self.bounds.items()]
        arrays = [x if x.dtype == np.float32 else _widened(x) for x in arrays]
        return jax.make_array_from_single_device_arrays(self.shape, self.sharding, arrays)


class _Pool:
    """Threads, each with a buffer of its own: reading, hashing and turning let go of the interpreter."""

    def __init__(self) -> None:
        n = min(machine.cores(), 8)
        self._buffers: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
        for _ in range(n):
            self._buffers.put(np.empty(0, np.uint8))
        self._pool = ThreadPoolExecutor(n)

    def submit(self, n_bytes: int, f: Callable[..., Any], *args: Any) -> Future:
        def with_buffer() -> None:
            buffer_N = self._buffers.get()
            try:
                if len(buffer_N) < n_bytes:
                    buffer_N = np.empty(n_bytes, np.uint8)
                f(buffer_N, *args)
            finally:
                self._buffers.put(buffer_N)

        return self._pool.submit(with_buffer)

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised, on a boundary of 64 bytes: a CPU's device takes it as it is."""
    n = dtype.itemsize * math.prod(shape)
    raw_N = np.empty(n + 64, np.uint8)
    start = -raw_N.ctypes.data % 64
    return raw_N[start : start + n].view(dtype).reshape(shape)


def _copy(to: np.ndarray, x: np.ndarray) -> None:
    """Matrices that are turned as many columns at a time as a line of the cache of `to` holds; NumPy's own order
    is several times slower."""
    if x.ndim == 2 and x.strides[0] < x.strides[1]:
        n = 64 // to.itemsize
        for i in range(0, x.shape[1], n):
            to[:, i : i + n] = x[:, i : i + n]
    else:
        to[...] = x


@jax.jit
def _widened(x: jax.Array) -> jax.Array:
    """On the device, which halves reach in half the bytes: 325 MB of float16 were imported in 0.43 s, by NumPy in 0.93
    (2 cores)."""
    return x.astype(np.float32)


def _at(tree: Any, path: names.Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree
