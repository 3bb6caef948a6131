import json
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxsat import interop
from jaxsat.config import InputError
from jaxsat.interop import tensors
from jaxsat.interop.families import canonical
from jaxsat.interop.source import _widened
from tests.interop.conftest import FAMILIES, change, draw, same

library = pytest.importorskip("safetensors.numpy", reason="not installed: pip install 'jaxsat[bench]'")


def load(folder):
    return library.load_file(folder / "model.safetensors")


def save(folder, arrays, name="model.safetensors"):
    library.save_file({key: np.ascontiguousarray(x) for key, x in arrays.items()}, folder / name, {"format": "pt"})


def split(folder, n=3):
    """The same tensors in n files and an index."""
    arrays = load(folder)
    (folder / "model.safetensors").unlink()
    parts = [{key: arrays[key] for key in list(arrays)[i::n]} for i in range(n)]
    for i, part in enumerate(parts):
        save(folder, part, f"model-{i}.safetensors")
    weight_map = {key: f"model-{i}.safetensors" for i, part in enumerate(parts) for key in part}
    (folder / tensors.INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_round_trips_are_exact(written, tmp_path):
    config, params, folder = written
    source = interop.open(folder)
    assert source.config == canonical(config) and source.tokenizer is None
    same(source.params(), params)
    interop.write(source.config, source.params(), None, tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_parameters_are_placed_by_their_shardings(written):
    config, params, folder = written
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])

    def sharding(x):
        """Over layers, rows and columns, wherever they divide."""
        axes = [None] * x.ndim
        for axis, name in zip(reversed(range(x.ndim)), ("model", "data")):
            axes[axis] = name if x.shape[axis] % 2 == 0 else None
        return NamedSharding(mesh, PartitionSpec(*axes))

    shardings = jax.tree.map(sharding, params)
    found = interop.open(folder).params(shardings)
    same(found, params)
    jax.tree.map(lambda x, s: (x.sharding == s) or pytest.fail(f"{x.sharding} is not {s}"), found, shardings)
    assert len(found["embedding"].sharding.spec) == 2 and found["embedding"].sharding.spec != PartitionSpec(None, None)
    layers = NamedSharding(mesh, PartitionSpec("data"))  # three layers do not divide: all whole
    same(interop.open(folder).params(NamedSharding(mesh, PartitionSpec())), params)
    two = params | {"blocks": jax.tree.map(lambda x: x[:2], params["blocks"])}
    shutil.rmtree(folder)
    interop.write(config_of(config, depth=2), two, None, folder)
    whole = NamedSharding(mesh, PartitionSpec())
    tree = jax.tree.map(lambda _: whole, two) | {"blocks": jax.tree.map(lambda _: layers, two["blocks"])}
    same(interop.open(folder).params(tree), two)


def config_of(config, **keys):
    return type(config)(**vars(config) | keys)


def test_the_hash_is_of_the_weights_whatever_files_they_lie_in(written):
    config, _, folder = written
    one = interop.open(folder).content_hash
    read = interop.open(folder)
    read.params()
    assert read.content_hash == one  # taken on the way
    split(folder)
    sharded = interop.open(folder)
    same(sharded.params(), draw(config))
    assert sharded.content_hash == one


def test_one_bit_changes_the_hash(llama_folder):
    before = interop.open(llama_folder).content_hash
    arrays = load(llama_folder)
    x = arrays["model.layers.1.mlp.up_proj.weight"]
    x.view(np.uint32)[3, 5] ^= 1
    save(llama_folder, arrays)
    changed = interop.open(llama_folder).content_hash
    arrays["model.layers.1.mlp.up_proj.weight"], arrays["model.layers.2.mlp.up_proj.weight"] = (
        arrays["model.layers.2.mlp.up_proj.weight"],
        x,
    )
    save(llama_folder, arrays)
    assert len({before, changed, interop.open(llama_folder).content_hash}) == 3


@pytest.mark.parametrize("dtype", [np.float16, tensors.DTYPES["BF16"]])
def test_halves_become_float32_exactly(llama_folder, dtype):
    halves = {key: x.astype(dtype) for key, x in load(llama_folder).items()}
    save(llama_folder, halves)
    found = interop.open(llama_folder).params()
    save(llama_folder, {key: x.astype(np.float32) for key, x in halves.items()})
    same(found, interop.open(llama_folder).params())


def test_every_half_is_widened_exactly():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    expected, found = every.astype(np.float32), np.asarray(_widened(every))
    same_bits = expected.view(np.uint32) == found.view(np.uint32)
    assert (same_bits | np.isnan(expected) & np.isnan(found)).all()


def test_layers_of_different_types_are_stacked(llama_folder):
    arrays = load(llama_folder)
    mixed = {key: x.astype(np.float16 if "layers.0." in key else np.float32) for key, x in arrays.items()}
    save(llama_folder, mixed)
    found = interop.open(llama_folder).params()
    save(llama_folder, {key: x.astype(np.float32) for key, x in mixed.items()})
    same(found, interop.open(llama_folder).params())


def test_tensors_of_other_types_are_refused_by_name(llama_folder):
    save(llama_folder, load(llama_folder) | {"model.norm.weight": np.ones(24)})
    with pytest.raises(InputError, match="tensor model.norm.weight is F64: F32, F16, BF16 can be read"):
        interop.open(llama_folder)


def test_buffers_beside_the_parameters_are_passed_over(tmp_path):
    for family, buffers in {
        "gpt_neox": {
            "gpt_neox.layers.0.attention.bias": np.tri(64, dtype=bool)[None, None],
            "gpt_neox.layers.0.attention.masked_bias": np.float32(-1e9),
            "gpt_neox.layers.2.attention.rotary_emb.inv_freq": np.ones(2, np.float32),
        },
        "gpt2": {"transformer.h.0.attn.bias": np.tri(64, dtype=np.uint8)},
        "llama": {"model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)},
    }.items():
        folder = tmp_path / family
        interop.write(FAMILIES[family], draw(FAMILIES[family]), None, folder)
        before = interop.open(folder).content_hash
        save(folder, load(folder) | buffers)
        source = interop.open(folder)
        same(source.params(), draw(FAMILIES[family]))
        assert source.content_hash == before


def test_other_spellings_of_names_are_the_same_model(tmp_path):
    for family, old, new in [
        ("gpt_neox", "embed_out.", "lm_head."),
        ("gpt2", "transformer.", ""),
        ("opt", "model.decoder.", "decoder."),
        ("gemma", "model.", ""),
    ]:
        folder = tmp_path / family
        interop.write(FAMILIES[family], draw(FAMILIES[family]), None, folder)
        before = interop.open(folder).content_hash
        renamed = {key.replace(old, new, 1) if key.startswith(old) else key: x for key, x in load(folder).items()}
        assert renamed.keys() != load(folder).keys()
        save(folder, renamed)
        source = interop.open(folder)
        same(source.params(), draw(FAMILIES[family]))
        assert source.content_hash == before


@pytest.mark.parametrize("family", ["gpt2", "gemma"])
def test_a_tied_head_that_is_written_out_is_the_embedding_or_refused(tmp_path, family):
    folder = tmp_path / "model"
    interop.write(FAMILIES[family], draw(FAMILIES[family]), None, folder)
    arrays = load(folder)
    table = arrays["transformer.wte.weight" if family == "gpt2" else "model.embed_tokens.weight"]
    before = interop.open(folder).content_hash
    save(folder, arrays | {"lm_head.weight": table})
    source = interop.open(folder)
    assert source.content_hash == before
    same(source.params(), draw(FAMILIES[family]))
    for other in (table + np.float32(1e-6), table[1:]):
        save(folder, arrays | {"lm_head.weight": other})
        with pytest.raises(InputError, match="ties the head to the embedding, and the head that is there differs"):
            interop.open(folder).params()
        with pytest.raises(InputError, match="ties the head to the embedding, and the head that is there differs"):
            interop.open(folder).content_hash  # noqa: B018


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda a: a.pop("model.layers.2.mlp.down_proj.weight"), "has no tensor model.layers.2.mlp.down_proj.weight"),
        (lambda a: a.pop("lm_head.weight"), "has no tensor lm_head.weight, which a llama of this config.json has"),
        (lambda a: a.update({"score.weight": np.ones(3, np.float32)}), "tensor score.weight is no part of the llama"),
        (lambda a: a.update({"model.layers.3.mlp.up_proj.weight": np.ones(3, np.float32)}), "model.layers.3.mlp.up_proj"
         ".weight is no part of the llama of 3 layers that config.json describes"),
        (lambda a: a.update({"model.norm.weight": np.ones(23, np.float32)}),
         r"tensor model.norm.weight is \(23,\), config.json says \(24,\)"),
        (lambda a: a.update({"lm_head.weight": a["lm_head.weight"].T}),
         r"tensor lm_head.weight is \(24, 91\), config.json says \(91, 24\)"),
    ],
)  # fmt: skip
def test_tensors_that_config_json_does_not_describe_are_refused_by_name(llama_folder, edit, words):
    arrays = load(llama_folder)
    edit(arrays)
    save(llama_folder, arrays)
    with pytest.raises(InputError, match=words) as e:
        interop.open(llama_folder)
    assert "\n" not in str(e.value)


def test_more_layers_than_tensors_are_refused_at_once(llama_folder):
    change(llama_folder, num_hidden_layers=2**31 - 1)
    with pytest.raises(InputError, match="config.json says 2147483647 layers, and there are 51 tensors beside it"):
        interop.open(llama_folder)


def test_config_json_that_is_missing_cut_or_of_another_family_is_refused(llama_folder):
    path = llama_folder / "config.json"
    text = path.read_text()
    for wrong, words in [
        (text[:50], "config.json is cut or no JSON"),
        ("3", "config.json must be an object, not '3'"),
        (b"\xff", "config.json is cut or no JSON"),
        ("{}", "config.json: model_type = None is not known here, only gpt_neox, gpt2, opt, llama, mistral, gemma"),
    ]:
        path.write_bytes(wrong if isinstance(wrong, bytes) else wrong.encode())
        with pytest.raises(InputError, match=words):
            interop.open(llama_folder)
    path.unlink()
    with pytest.raises(InputError, match="has no config.json: it belongs beside the weights"):
        interop.open(llama_folder)


def test_a_window_shorter_than_the_context_is_said(tmp_path):
    interop.write(FAMILIES["mistral"], draw(FAMILIES["mistral"]), None, tmp_path / "model")
    change(tmp_path / "model", sliding_window=32)
    source = interop.open(tmp_path / "model")
    assert source.config.context == 32 and "sliding_window = 32" in source.notes[0]
