import json

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from jaxsat.config import InputError
from jaxsat.interop import tensors

ARRAYS = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.float32(7), "none": np.zeros((0, 3), np.float32)}


def read(tensor):
    return tensor.read(np.empty(tensor.size + 5, np.uint8))


def put(path, header: dict | bytes, data: bytes = b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.fixture
def folder(tmp_path):
    path = epath.Path(tmp_path)
    shapes = {name: array.shape for name, array in ARRAYS.items()}
    tensors.write(path / "model.safetensors", shapes, (np.asarray(a) for a in ARRAYS.values()))
    return path


def test_what_is_written_is_read(folder):
    found = tensors.find(folder)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read(found[name]), array)


def test_its_own_library_reads_what_we_write_and_we_what_it_writes(folder, tmp_path):
    library = pytest.importorskip(
        "safetensors.numpy", reason="safetensors is not installed: pip install 'jaxsat[test]'"
    )
    theirs = library.load_file(folder / "model.safetensors")
    assert theirs.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(theirs[name], array)
    half = {name: np.asarray(array, np.float16) for name, array in ARRAYS.items()} | {"mask": np.ones((2, 2), bool)}
    library.save_file(half, folder / "model.safetensors", {"format": "pt"})
    found = tensors.find(folder)
    assert found["mask"].dtype == "BOOL" and found["a"].dtype == "F16"
    for name in ARRAYS:
        np.testing.assert_array_equal(read(found[name]), half[name])


def test_bfloat16_is_read_exactly(tmp_path):
    bits = np.array([0x3F80, 0xC000, 0x7F7F, 0x0001], np.uint16)  # 1, -2, the largest, the least
    put(tmp_path / "model.safetensors", {"x": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}, bits.tobytes())
    expected = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(read(tensors.find(epath.Path(tmp_path))["x"]).astype(np.float32), expected)


@given(st.data())
def test_a_file_that_is_cut_or_longer_is_refused(tmp_path_factory, data):
    path = epath.Path(tmp_path_factory.mktemp("cut"))
    shapes = {name: array.shape for name, array in ARRAYS.items()}
    tensors.write(path / "model.safetensors", shapes, (np.asarray(a) for a in ARRAYS.values()))
    whole = (path / "model.safetensors").read_bytes()
    size = data.draw(st.integers(0, len(whole) + 9).filter(lambda n: n != len(whole)))
    (path / "model.safetensors").write_bytes((whole + b"x" * 9)[:size])
    with pytest.raises(InputError, match="model.safetensors is no whole safetensors file .*: fetch it again") as e:
        tensors.find(path)
    assert "\n" not in str(e.value)


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [b"[]", b"3", b"{", b"\xff\xff", {"x": 3}, {"x": {}}, {"x": ONE | {"shape": [3]}}, {"x": ONE | {"shape": "ab"}},
     {"x": ONE | {"data_offsets": [8, 0]}}, {"x": ONE | {"data_offsets": [-8, 0]}}, {"x": ONE | {"data_offsets": [0]}},
     b'{"x": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 8]}}', b"[" * 100_000,
     {"x": ONE | {"shape": "2"}}, {"x": ONE | {"shape": [2.0]}}, {"x": ONE | {"data_offsets": [0.0, 8.0]}},
     {"x": ONE | {"dtype": "F16"}}, {"x": ONE | {"shape": [-1, -2]}}, {"x": ONE | {"data_offsets": ["0", "8"]}}],
)  # fmt: skip
def test_a_header_that_is_none_is_refused(tmp_path, header):
    put(tmp_path / "model.safetensors", header, bytes(8))
    with pytest.raises(InputError, match="model.safetensors is no whole safetensors file"):
        tensors.find(epath.Path(tmp_path))


@pytest.mark.parametrize("places", [[(0, 8), (0, 8)], [(0, 8), (4, 12)], [(0, 8), (12, 20)], [(8, 16), (16, 24)]])
def test_tensors_lie_one_after_the_other(tmp_path, places):
    """Of bytes that two share, or that belong to none, one is not what it says."""
    put(tmp_path / "model.safetensors", {f"x{i}": ONE | {"data_offsets": at} for i, at in enumerate(places)},
        bytes(max(end for _, end in places)))  # fmt: skip
    with pytest.raises(InputError, match="is no whole safetensors file .x. begins at byte .*, where byte .* is next"):
        tensors.find(epath.Path(tmp_path))


@pytest.mark.parametrize("what", ["folder", "link"])
def test_weights_that_are_no_file_are_named(tmp_path, what):
    path = tmp_path / "model.safetensors"
    path.mkdir() if what == "folder" else path.symlink_to("nowhere")
    with pytest.raises(InputError, match="model.safetensors cannot be read: "):
        tensors.find(epath.Path(tmp_path))


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(folder):
    found = tensors.find(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="has become shorter"):
        read(found["a"])


def shard(folder, index: dict | str, **files: list[str]):
    """Files of two floats a tensor, and an index."""
    for name, within in files.items():
        header = {t: ONE | {"data_offsets": [8 * i, 8 * i + 8]} for i, t in enumerate(within)}
        put(folder / f"{name}.safetensors", header, np.arange(2 * len(within), dtype=np.float32).tobytes())
    (folder / tensors.INDEX).write_text(index if isinstance(index, str) else json.dumps(index))


def test_files_that_an_index_lists_are_one_model(tmp_path):
    listed = {"x": "m1.safetensors", "y": "m2.safetensors", "z": "m2.safetensors"}
    shard(tmp_path, {"weight_map": listed}, m1=["x"], m2=["y", "z"], consolidated=["x", "y", "z"])
    found = tensors.find(epath.Path(tmp_path))
    assert {name: tensor.file.name for name, tensor in found.items()} == listed
    np.testing.assert_array_equal(read(found["z"]), [2, 3])


@pytest.mark.parametrize(
    "index, words",
    [
        ("{", "is cut or no JSON"),
        ("[]", "must be an object"),
        ({}, "has no weight_map"),
        ({"weight_map": {"x": 3}}, "has no weight_map"),
        ({"weight_map": {"x": "m1.safetensors", "y": "m3.safetensors"}}, "has no m3.safetensors, which .* lists"),
        ({"weight_map": {"x": "../m1.safetensors"}}, "has no ../m1.safetensors, which .* lists"),
        ({"weight_map": {"x": "m1.safetensors", "y": "m2.safetensors"}}, "tensor x is in m1.safetensors and in m2"),
    ],
)
def test_an_index_that_is_wrong_is_refused(tmp_path, index, words):
    shard(tmp_path, index, m1=["x"], m2=["x", "y"])
    with pytest.raises(InputError, match=words):
        tensors.find(epath.Path(tmp_path))


def test_files_without_an_index_are_refused(tmp_path):
    shard(tmp_path, {}, m1=["x"], m2=["y"])
    (tmp_path / tensors.INDEX).unlink()
    with pytest.raises(InputError, match="has m1.safetensors, m2.safetensors and no model.safetensors.index.json"):
        tensors.find(epath.Path(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_a_pickle_is_refused_unread(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=f"{name}, a pickle, which may run any code when it is read: convert it"):
        tensors.find(epath.Path(tmp_path))


def test_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere is not there: give a folder"):
        tensors.find(epath.Path(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file: give the folder"):
        tensors.find(epath.Path(tmp_path / "file"))
    with pytest.raises(InputError, match="has no weights"):
        tensors.find(epath.Path(tmp_path))
