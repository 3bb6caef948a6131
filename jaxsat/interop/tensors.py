"""The safetensors format: 8 bytes of the header's length, a JSON header of names, types, shapes and places, the bytes.

Read here and not with its own library, so that a tensor passes from the file to its device through one buffer, in any
type and from any storage, and so that damage is told apart. Source: "Format" in the README of huggingface/safetensors.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from jaxsat.config import InputError

INDEX = "model.safetensors.index.json"
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Tensor:
    file: epath.Path
    dtype: str  # as the format spells it
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    size: int  # bytes

    def read(self, buffer_N: np.ndarray) -> np.ndarray:
        """The array, in the bytes of `buffer_N` (uint8), which is at least as large. Raises InputError."""
        raw = buffer_N[: self.size]
        with self.file.open("rb") as f:
            f.seek(self.start)
            if f.readinto(memoryview(raw)) != self.size:
                raise InputError(f"{self.file} has become shorter while it was read: fetch it again")
        return raw.view(DTYPES[self.dtype]).reshape(self.shape)


def find(folder: epath.Path) -> dict[str, Tensor]:
    """The tensors of a folder by name, whether they lie in one file or in several that an index lists.

    Raises InputError: no weights, pickles, an index that is cut or names what is not there, a truncated file.
    """
    found: dict[str, Tensor] = {}
    for file in _files(folder):
        for name, tensor in _header(file).items():
            if name in found:
                raise InputError(f"{folder}: tensor {name} is in {found[name].file.name} and in {file.name}")
            found[name] = tensor
    return found


def read_json(path: epath.Path) -> dict[str, Any]:
    """Raises InputError where it is not there, cut, or no object."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {path.name}: it belongs beside the weights") from None
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path} is cut or no JSON ({e}): fetch it again") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} must be an object, not {str(found)[:40]!r}")
    return found


def write(path: epath.Path, shapes: dict[str, tuple[int, ...]], arrays: Iterable[np.ndarray]) -> None:
    """Writes float32 `arrays`, one at a time, of these names and shapes in this order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it transformers refuses the file
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for (name, shape), array in zip(shapes.items(), arrays, strict=True):
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(f"{name} is {array.dtype} of {array.shape}, not float32 of {shape}")
            f.write(np.ascontiguousarray(array).data)


def _files(folder: epath.Path) -> list[epath.Path]:
    if not folder.exists():
        raise InputError(f"{folder} is not there: give a folder with config.json and *.safetensors")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: give the folder with config.json and *.safetensors")
    names = sorted(path.name for path in folder.iterdir())
    weights = [name for name in names if name.endswith(".safetensors")]
    if INDEX in names:
        listed = read_json(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise InputError(f"{folder / INDEX} has no weight_map of tensors to files: fetch it again")
        if missing := sorted({*listed.values()} - {*weights}):
            raise InputError(f"{folder} has no {missing[0]}, which {INDEX} lists: fetch it too")
        return [folder / name for name in sorted({*listed.values()})]
    if "model.safetensors" in names:
        return [folder / "model.safetensors"]
    if len(weights) == 1:
        return [folder / weights[0]]
    if weights:
        raise InputError(f"{folder} has {', '.join(weights[:3])} and no {INDEX} that says how they belong together")
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        raise InputError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which may run any code when it is read: convert it "
            "where you trust it, with transformers' from_pretrained(...) and save_pretrained(...), to safetensors"
        )
    raise InputError(f"{folder} has no weights: give a folder with config.json and *.safetensors")


def _header(file: epath.Path) -> dict[str, Tensor]:
    damaged = lambda why: InputError(f"{file} is no whole safetensors file ({why}): fetch it again")
    try:
        length = file.stat().length
        with file.open("rb") as f:
            n = int.from_bytes(f.read(8), "little")
            if length < 8 or n > min(length - 8, LONGEST_HEADER):
                raise damaged(f"it has {length} bytes and a header of {n}")
            header = f.read(n)
    except OSError as e:
        raise InputError(f"{file} cannot be read: {e.strerror}") from None
    try:
        header = json.loads(header)
        header.pop("__metadata__", None)
        found = dict(_entries(file, header, 8 + n))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise damaged(f"its header: {type(e).__name__}: {e}") from None
    end = 8 + n
    for start, size, name in sorted((t.start, t.size, name) for name, t in found.items()):
        if start != end:
            raise damaged(f"{name} begins at byte {start}, where byte {end} is next")
        end += size
    if end != length:
        raise damaged(f"it has {length} bytes, and its header says {end}")
    return found


def _entries(file: epath.Path, header: dict[str, Any], base: int) -> Iterator[tuple[str, Tensor]]:
    for name, about in header.items():
        dtype, (start, end), shape = about["dtype"], about["data_offsets"], tuple(about["shape"])
        if (
            not all(type(n) is int for n in (start, end, *shape))
            or not 0 <= start <= end
            or min(shape, default=0) < 0
            or dtype in DTYPES
            and end - start != math.prod(shape) * DTYPES[dtype].itemsize
        ):
            raise ValueError(f"{name} of {dtype} {shape} in bytes {start} to {end}")
        yield name, Tensor(file, dtype, shape, base + start, end - start)
