"""Bad input at scale: a command or a reader ends in success or in one clear line, and changes nothing it was given."""

import contextlib
import gzip
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from etils import epath
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from jaxsat import cli, corpus, directory, disk, evaluate, interop, laws
from jaxsat.config import DataConfig, Imported, InputError, ModelConfig, Run, dumps, from_dict, validate
from jaxsat.disk import HASHES, read_json
from jaxsat.interop.tensors import INDEX, find
from jaxsat.model import count_parameters
from jaxsat.sweep import Sweep
from tests.interop.conftest import FAMILIES, draw

pytestmark = pytest.mark.slow
CASES = {"configurations": 400, "commands": 250, "tokenizers": 250, "corpora": 300, "cache": 60, "items": 300,
         "tables": 350, "weights": 300, "studies": 300}  # fmt: skip
assert sum(CASES.values()) >= 2000
ODD = ["null", "true", "-1", "0", "0.5", "NaN", "Infinity", "-Infinity", "1e999", str(2**31), str(2**63), str(-(2**63)),
       "1" + "0" * 400, "9" * 5000, '""', '" "', '"\\u0000"', '"\\ud800"', '"a\\nb"', f'"{"x" * 100_000}"', "[]", "{}",
       "[1, 2]", '["a", null]', '{"a": 1}', *("[" * n + "]" * n for n in (700, 10_000)),
       *('{"a":' * n + "1" + "}" * n for n in (700, 10_000))]  # fmt: skip
BYTES = [b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\xed\xa0\x80", b"{", b'"', b",", b"\t", b"\n\n", b"nan"]
AT, ZERO = st.integers(0, 2**16), st.just(0)


def kinds(*names: str, what: st.SearchStrategy = ZERO) -> st.SearchStrategy:
    return st.tuples(st.sampled_from(names), AT, what)


JSON = kinds("value", "key", what=st.sampled_from(ODD)) | kinds("gone", what=st.just(""))
FIELD = kinds("field", what=st.sampled_from([text.strip('"').encode() for text in ODD] + BYTES))
RAW = kinds("flip", what=st.integers(0, 7)) | kinds("insert", what=st.sampled_from(BYTES) | st.binary(max_size=8))
RAW |= kinds("cut", "empty", "bom", "crlf", "utf-16") | kinds("folder", "missing", "dangling")
MOSTLY_JSON = st.one_of(JSON, JSON, RAW)
Damage = tuple[str, int, str | bytes | int]


def fuzz(door: str, **what: st.SearchStrategy) -> Callable:
    """A test of as many cases as CASES says, the same in every run."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    how = settings(
        max_examples=CASES[door], deadline=30_000, derandomize=True, database=None, suppress_health_check=quiet
    )
    return lambda f: how(given(**what)(f))


def damaged(content: bytes, damage: Damage) -> bytes | None:
    """None: there is no such file any more. What asks for JSON is an insertion where there is none."""
    kind, at, what = damage
    if kind in ("value", "key", "gone"):
        with contextlib.suppress(ValueError):
            return _json(content, *damage)
        kind, what = "insert", what.encode()
    if kind in ("folder", "missing", "dangling"):
        return None
    i = at % max(1, len(content))
    fields = re.split(rb"([,\n\t])", content)
    field = 2 * (at % (len(fields) // 2 + 1))
    return {
        "field": lambda: b"".join([*fields[:field], what, *fields[field + 1 :]]),
        "flip": lambda: content[:i] + bytes([of ^ 1 << what for of in content[i : i + 1]]) + content[i + 1 :],
        "cut": lambda: content[:i],
        "insert": lambda: content[:i] + what + content[i:],
        "empty": lambda: b"",
        "bom": lambda: b"\xef\xbb\xbf" + content,
        "crlf": lambda: content.replace(b"\n", b"\r\n"),
        "utf-16": lambda: content.decode(errors="replace").encode("utf-16"),
    }[kind]()


def _json(content: bytes, kind: str, at: int, text: str) -> bytes:
    """Of JSON, or of a line of lines of it, a value or a key that is another, or gone."""
    try:
        box = [json.loads(content)]
    except ValueError:
        lines = [line for line in content.split(b"\n") if line]
        if len(lines) < 2:
            raise
        lines[at % len(lines)] = _json(lines[at % len(lines)], kind, at // len(lines), text)
        return b"\n".join(lines)
    all_: list = [(box, 0)]
    for node, key in all_:
        of = node[key]
        all_ += [(of, k) for k in (of if isinstance(of, dict) else range(len(of)) if isinstance(of, list) else ())]
    node, key = all_[at % len(all_)]
    if kind == "gone":
        del node[key]
    elif kind == "key" and text[0] == '"' and isinstance(node, dict):
        node["\ue000"] = node.pop(key)
    else:
        node[key] = "\ue000"
    return json.dumps(*box or [None]).replace('"\\ue000"', text).encode()


def struck(path: Path, damage: Damage, call: Callable[[], object], noted: bool = True, header: bool = False) -> None:
    """Calls with a damaged file, or a damaged `header` of safetensors, with or without the hash beside it; afterwards
    they are as they were."""
    content, beside = path.read_bytes(), path.parent / f".{path.name}{HASHES}"
    hash = beside.read_bytes() if beside.exists() else None
    n = 8 + int.from_bytes(content[:8], "little") if header else 0
    new = damaged(content[8:n] if header else content, damage)
    if header and new is not None:
        new = len(new).to_bytes(8, "little") + new + content[n:]
    try:
        path.unlink()
        if new is not None:
            path.write_bytes(new)
        elif damage[0] == "folder":
            path.mkdir()
        elif damage[0] == "dangling":
            os.symlink("nowhere", path)
        if not noted:
            beside.unlink(missing_ok=True)
        call()
        if noted and hash is not None and new != content:
            assert any(path.name in fault for _, fault in disk.faults(epath.Path(path.parent)))
    finally:
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(content)
        if hash is not None:
            beside.write_bytes(hash)


def contents(folder: Path) -> list[tuple[Path, str | bool, bytes | bool]]:
    paths = [Path(root, name) for root, folders, names in os.walk(folder) for name in (*folders, *names)]
    return [(p, p.is_symlink() and os.readlink(p), p.is_file() and p.read_bytes()) for p in paths]


def ends(call: Callable[[], object], folder: Path, named: str = "") -> str:
    """The line in which a call ended that was refused, and "" after success; any other end is a fault."""
    before, out = contents(folder), io.TextIOWrapper(io.BytesIO(), "utf-8")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = code if type(code := call()) is int else 0
        except InputError as e:
            code = cli._say(str(e), 2)
        except SystemExit as e:
            code = e.code
    err.flush()
    said = err.buffer.getvalue().decode()
    assert contents(folder) == before
    assert code in (0, 2) or said.endswith("faults\n") and "Traceback" not in said, said
    event(f"exit {code}")
    if code == 2 and not said.startswith("╭"):  # tyro's own box
        assert said.count("\n") == 1 and len(said) <= 500 and named in said, said[:2000]
    return said if code == 2 else ""


@pytest.fixture(scope="module", autouse=True)
def tmp(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "here").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSAT_CACHE", str(folder / "cache"))
        patch.setenv("JAX_NUM_CPU_DEVICES", "8")
        patch.chdir(folder / "here")
        yield folder


def case(name: str, content: bytes) -> Path:
    """A file of this content, alone in a folder."""
    folder = Path.cwd().parent / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / name).write_bytes(content)
    return folder / name


RUNS = [
    Run(),
    Run(ModelConfig(head="mixture", kv_heads=2, head_width=8, ffn_width=32), data_seed=3, task="a"),
    Run(data=DataConfig(("a.txt", "b.txt"), weights=(1.0, 2.0), heldout=("c.txt",))),
    Run().branch(250, {"train.steps": 2000}, ["schedule", "data"]),
    Run(ModelConfig(scan_layers=True), imported=Imported("pythia", (0, 1, 2), 2_097_152)),
]


@fuzz("configurations", run=st.sampled_from(RUNS), damage=MOSTLY_JSON, dotted=st.booleans())
def test_configurations(run, damage, dotted):
    path = case("config.json", dumps(run).encode())

    def use():
        data = read_json(epath.Path(path), dict[str, Any], "a configuration", "mend it")
        if dotted:  # as the points of a sweep are
            flat = {key: value if isinstance(value, dict) else {"": value} for key, value in data.items()}
            data = {f"{key}.{k}".rstrip("."): v for key, values in flat.items() for k, v in values.items()}
            (found,) = Sweep("main", Run(), [data]).runs
        else:
            found = validate(from_dict(Run, data, str(path)))
        assert from_dict(Run, json.loads(dumps(found))) == found
        assert found.id and found.checkpoint_steps and directory.text_key(found) and count_parameters(found.model)

    struck(path, damage, lambda: ends(use, path.parent))


WORDS = ["sun", "moon", "stars", "sea", "stone", "tree", "river", "and", "the", "of"]
TEXT = "\n".join(" ".join(np.random.default_rng(i).choice(WORDS, 12)) for i in range(20))


VOCABULARY = {token: i for i, token in enumerate(["<unk>", "</s>", *WORDS, *"abcdefghijklmnopqrstuvwxyz \n"])}
MODELS = models.WordPiece(VOCABULARY, unk_token="<unk>"), models.Unigram([(token, -1.0) for token in VOCABULARY], 0)
TRAINED = corpus.tokenizer.train([TEXT], 60), corpus.tokenizer.train_words([TEXT], 60)
TOKENIZERS = [each.to_str().encode() for each in (*TRAINED, *map(Tokenizer, MODELS))]


@fuzz("tokenizers", content=st.sampled_from(TOKENIZERS), damage=MOSTLY_JSON)
def test_tokenizers(content, damage):
    path = case("tokenizer.json", content)
    (path.parent / "words.txt").write_text(TEXT)
    data = DataConfig((str(path.parent / "words.txt"),), str(path), 0.2, 100)
    struck(path, damage, lambda: ends(lambda: corpus.prepare(data, 64, 8), path.parent))


LINES = {
    ".tsv": "the sun {0}\tthe moon {0}",
    ".jsonl": '{{"text": "the sun {0}", "id": "{0}"}}',
    ".pairs.jsonl": '{{"source": "the sun {0}", "target": "moon {0}"}}',
    ".units.jsonl": '{{"units": [1, 2, {0}]}}',
}
DOCUMENTS = {kind: "\n".join(map(line.format, range(20))).encode() for kind, line in LINES.items()}
DOCUMENTS[".txt"] = TEXT.encode()
DOCUMENTS |= {f"{kind}.gz": gzip.compress(content, mtime=0) for kind, content in DOCUMENTS.items()}


@fuzz("corpora", kind=st.sampled_from([*DOCUMENTS]), damage=st.one_of(JSON, FIELD, RAW, RAW), words=st.booleans())
def test_corpora(kind, damage, words):
    path = case(f"words{kind}", DOCUMENTS[kind])
    data = DataConfig((str(path),), "words" if words else "bpe", 0.2, 100)

    def use():
        if not ends(lambda: [*corpus.documents(str(path))], path.parent, path.name):
            ends(lambda: corpus.prepare(data, 200, 30), path.parent, path.name)

    struck(path, damage, use)


@fuzz("cache", file=AT, damage=st.one_of(JSON, RAW))
def test_what_is_kept_of_a_corpus(file, damage):
    data = DataConfig((str(case("words.txt", TEXT.encode())),), "words", 0.2, 100)
    kept = Path(corpus.prepare(data, 200, 8).tokenizer.parent)
    paths = sorted(kept.iterdir())
    struck(paths[file % len(paths)], damage, lambda: ends(lambda: corpus.prepare(data, 200, 8), kept))


ITEMS = [{"good": "the sun", "bad": "the moon", "id": 7, "group": "a"}, {"context": "the sun and", "last": "moon"},
         {"context": "the", "options": ["sun", "moon", "sea"], "answer": 1, "id": "x"},
         {"source": "the sun", "target": "the moon", "group": None}]  # fmt: skip


@fuzz("items", damage=MOSTLY_JSON)
def test_items(damage):
    path = case("items.jsonl", "\n".join(map(json.dumps, ITEMS)).encode())
    read = lambda: [item.continuations for item in evaluate.read_items(path).items]
    struck(path, damage, lambda: ends(read, path.parent, path.name))


N = [1e6, 2e6, 4e6, 8e6]
TABLE = pd.DataFrame({"N": N * 2, "D": [1e8] * 4 + [4e8] * 4, "loss": np.linspace(4, 3, 8), "run": [*"abcdabcd"]})
TABLES = {"t.csv": TABLE.to_csv(index=False).encode(), "t.tsv": TABLE.to_csv(index=False, sep="\t").encode(),
          "t.jsonl": TABLE.to_json(orient="records", lines=True).encode(), "t.parquet": TABLE.to_parquet()}  # fmt: skip
TABLES["t.csv.gz"] = gzip.compress(TABLES["t.csv"], mtime=0)
FLAGS = ["", "", "--where loss<3.9", "--where run==a", "--weight D", "--group run", "--flops D", "--held-out loss",
         "--family run --own E", "--held-out N>3e6", "--compare kaplan"]  # fmt: skip


def _checked(form, inputs, target, **_):
    assert all(np.isfinite(x).all() for x in (*inputs.values(), target))
    raise SystemExit(0)


@fuzz("tables", name=st.sampled_from([*TABLES]), damage=st.one_of(JSON, FIELD, FIELD, RAW, RAW),
      flags=st.sampled_from(FLAGS))  # fmt: skip
def test_tables(monkeypatch, name, damage, flags):
    """All but the fit itself, which is that of any numbers."""
    path = case(name, TABLES[name])
    monkeypatch.setattr(laws, "fit", _checked)
    struck(path, damage, lambda: ends(lambda: cli.main(["fit", str(path), *flags.split()]), path.parent))


@pytest.fixture(scope="module")
def families(tmp):
    """A folder of each of some families, with an index."""
    for family, config in FAMILIES.items():
        folder = tmp / "models" / family
        interop.write(config, draw(config), TOKENIZERS[0].decode(), folder)
        listed = dict.fromkeys(find(epath.Path(folder)), "model.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": listed}))
    return tmp / "models"


FILES = ["header", "header", "model.safetensors", "config.json", "tokenizer.json", INDEX]


@fuzz("weights", family=st.sampled_from([*FAMILIES]), damage=MOSTLY_JSON, file=st.sampled_from(FILES))
def test_weights(families, family, damage, file):
    folder = families / family

    def use():
        source = interop.Source(folder)
        assert source.params() and source.content_hash
        if source.tokenizer:
            corpus.tokenizer.load(str(source.tokenizer), source.config.vocab_size, ends=False)

    path = folder / file.replace("header", "model.safetensors")
    struck(path, damage, lambda: ends(use, folder, family), header=file == "header")


@pytest.fixture(scope="module")
def study(tmp, place, studied):
    """A finished study of which one checkpoint is left."""
    for name in ("mine.py", "words.txt"):
        shutil.copy(place / name, tmp / "here" / name)
    mine = place / "runs" / "mine"
    step = next((mine / "checkpoints").glob("*/20")).relative_to(mine)
    shutil.copytree(mine, tmp / "study", ignore=shutil.ignore_patterns("checkpoints", "report", "figures"))
    shutil.copytree(mine / step, tmp / "study" / step)
    run, *_ = json.loads((mine / step / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]["runs"]
    return tmp / "study", {
        "*": ["show OUT", "check OUT", "reproduce mine.py --dry-run --out OUT"],
        "runs/*/*": ["show OUT", "check OUT"],
        "checkpoints/**/*": ["check OUT", f"export OUT {run} --to {tmp}/new"],
        "measurements/*": ["check OUT", "reproduce mine.py --dry-run --out OUT"],
        "reports/*/*": [f"index OUT --to {tmp}/index.html"],
    }


@fuzz("studies", part=st.integers(0, 4), at=AT, noted=st.booleans(), damage=MOSTLY_JSON)
def test_studies(study, tmp, part, at, damage, noted):
    out, asked = study
    part, commands = list(asked.items())[part]
    files = sorted(p for p in out.glob(part) if p.is_file())
    shutil.rmtree(tmp / "new", ignore_errors=True)
    argv = commands[at % len(commands)].replace("OUT", str(out)).split()
    struck(files[at // 3 % len(files)], damage, lambda: ends(lambda: cli.main(argv), out), noted)


STRANGE = ["", " ", "9" * 400, "9" * 5000, "x" * 300, "x" * 100_000, "a\nb", "\udcff", "\x1b[31m"]
STRANGE += "-1 0 nan 1e999 .. / /dev/null ~ hf: hf:x huggingface:x a:b mine.py words.txt t.csv OUT a=b = , E=".split()
STRANGE += "E=1e999 N< v5e:0x0 1/0 0/1".split()
COMMANDS = """show {}; check {}; report {} --out {} --scale {}; fit t.csv --form {} --where {};
fit t.csv --hold {} --predict {}; fit t.csv --n {} --group {}; fit t.csv --level {} --seed {}; fit t.csv --figure {};
fit t.csv --family {} --own {} --compare {}; evaluate OUT --items {} --step {}; evaluate {} --items t.jsonl --step {};
import {} --to {} --name {}; import {} --to new --step {}; import OUT --to new --measure {};
export OUT {} --to {} --step {}; generate OUT --prompt {} --run {} --step {}; plan {} --topology {};
index {} {} --to {}; plan mine.py --topology zz --slices {} --mfu {}; reproduce {} --dry-run --out {};
corpus prepare {}; {} {}; train mine.py --dry-run --share {} --out OUT;
measure mine.py --dry-run --layout.runs {} --scale {}; show OUT {}"""


@fuzz("commands", command=st.sampled_from(COMMANDS.split(";")), words=st.permutations(STRANGE))
def test_commands(study, monkeypatch, command, words):
    """None that trains, compiles or fits."""
    Path("t.csv").write_bytes(TABLES["t.csv"])
    Path("t.jsonl").write_text(json.dumps(ITEMS[0]))
    monkeypatch.setattr(laws, "fit", _checked)
    argv = [words.pop() if word == "{}" else word for word in command.split()]
    ends(lambda: cli.main([str(study[0]) if word == "OUT" else word for word in argv]), Path.cwd())
