"""What is read is data: nothing of it is run, and no name in it leads out of its directory."""

import ast
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxsat import cli

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for room in ("jaxsat", "experiments", "launch", "benchmarks") for p in (ROOT / room).rglob("*.py"))
RUN_WHAT_THEY_READ = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
OF_A_SHELL = {"system", "popen", "getoutput", "getstatusoutput"}
BUILTINS = {"eval", "exec", "compile", "__import__"}


def faults(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [n.name for n in names if n.name.partition(".")[0] in RUN_WHAT_THEY_READ]
            case ast.ImportFrom(module=str(module)):
                found += [module] if module.partition(".")[0] in RUN_WHAT_THEY_READ else []
            case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
                found.append(name)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="os" | "subprocess"), attr=name)) if name in OF_A_SHELL:
                found.append(name)
            case ast.Call(func=ast.Attribute(attr="load" | "read_pickle" as name, value=ast.Name(id="torch" | "pd"))):
                found.append(name)
            case ast.keyword(arg="shell" | "allow_pickle" as name, value=value):
                found += [name] if not (isinstance(value, ast.Constant) and value.value is False) else []
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path):
    assert faults(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "source", ["import pickle", "from joblib import load", "eval(text)", "os.system(x)", "run(x, shell=True)",
               "np.load(f, allow_pickle=flag)", "torch.load(f)", "pd.read_pickle(f)"],
)  # fmt: skip
def test_the_walk_sees_what_it_looks_for(source):
    assert faults(ast.parse(source))


class Runs:
    """When it is unpickled, it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def refused(capsys, argv: list[str]) -> str:
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("jaxsat: ") and said.count("\n") == 1
    return said


@pytest.fixture
def weights(tmp_path) -> Path:
    """A folder with a configuration alone."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    config = {"model_type": "gpt_neox", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
              "intermediate_size": 32, "vocab_size": 256, "max_position_embeddings": 16}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.pth", "model.safetensors"])
def test_pickled_weights_are_refused_unread(name, weights, tmp_path, capsys):
    (weights / name).write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    refused(capsys, ["import", str(weights), "--to", str(tmp_path / "out")])
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet", "jsonl"])
def test_a_pickled_table_is_refused_unread(suffix, tmp_path, capsys):
    (table := tmp_path / f"table.{suffix}").write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    refused(capsys, ["fit", str(table)])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("size", [2**62, 2**40, 10**8, 2**63 + 1])
def test_the_size_of_a_header_is_bounded_before_it_is_trusted(size, weights, tmp_path, capsys):
    (weights / "model.safetensors").write_bytes(struct.pack("<Q", size) + b"{}")
    said = refused(capsys, ["import", str(weights), "--to", str(tmp_path / "out")])
    assert "model.safetensors" in said


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/../../secret.safetensors"])
def test_an_index_names_no_file_outside_its_folder(name, weights, tmp_path, capsys):
    from safetensors.numpy import save_file

    save_file({"gpt_neox.embed_in.weight": np.zeros((256, 8), np.float32)}, tmp_path / "secret.safetensors")
    index = {"weight_map": {"gpt_neox.embed_in.weight": name}}
    (weights / "model.safetensors.index.json").write_text(json.dumps(index))
    said = refused(capsys, ["import", str(weights), "--to", str(tmp_path / "out")])
    assert name in said


@pytest.mark.parametrize("name", ["../../elsewhere", "/tmp/elsewhere", "..", "a/b"])
def test_a_name_of_sweep_json_is_no_way_out(name, tmp_path, capsys, trained, tiny_pack):
    """Its ids are hashes of what they name; other names are refused before any path is made of them."""
    run = json.loads((trained / "runs" / tiny_pack.runs[0].id / "config.json").read_text())
    document = {"format": 2, "settings": {}, "texts": {}, "experiments": {}, "packs": [[name]], "runs": {name: run}}
    out = tmp_path / "out"
    out.mkdir()
    (out / "sweep.json").write_text(json.dumps(document))
    said = refused(capsys, ["show", str(out)])
    assert "sweep.json" in said
    assert {p.name for p in tmp_path.iterdir()} == {"out"} and [p.name for p in out.iterdir()] == ["sweep.json"]


def test_what_is_recorded_of_a_machine_holds_no_secret(monkeypatch):
    from jaxsat.train import environment

    secrets = {"HF_TOKEN": "hf_verysecret", "AWS_SECRET_ACCESS_KEY": "awsverysecret", "USER": "somebodysecret"}
    for key, value in secrets.items():
        monkeypatch.setenv(key, value)
    said = json.dumps(environment())
    assert not [value for value in secrets.values() if value in said] and str(Path.home()) not in said


@pytest.mark.parametrize(
    "packages, code, said",
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, "audit: 0 known vulnerabilities in 1 of 1 packages"),
        (
            [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}],
            1,
            "CVE-1, mended in 2",
        ),
        ([{"name": "a", "skip_reason": "not found"}], 0, "could not be had: the database knows none of 1 packages"),
        (None, 0, "could not be had: no network"),
    ],
)
def test_an_audit_fails_of_what_it_finds_and_says_where_it_could_not_be_had(packages, code, said, tmp_path):
    ends = "sys.exit('no network')" if packages is None else f"print(json.dumps({{'dependencies': {packages}}}))"
    (tmp_path / "pip_audit.py").write_text(f"import json, sys\n{ends}\n")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / ".ci" / "audit.py")]
    ended = subprocess.run(command, env=env, capture_output=True, text=True)
    assert ended.returncode == code and said in ended.stdout
