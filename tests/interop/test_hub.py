"""The hub's own client against a hub of ours on this machine."""

import http.server
import json
import threading
from pathlib import Path

import pytest

from jaxsat import interop
from jaxsat.config import InputError
from tests.interop.conftest import FAMILIES, draw, same

constants = pytest.importorskip(
    "huggingface_hub.constants", reason="huggingface_hub is not installed: pip install 'jaxsat[hub]'"
)
CONFIG = FAMILIES["llama"]
SHA = "0" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """One model, ORG/NAME, at the revisions that `root` has folders for, each its own commit."""

    protocol_version = "HTTP/1.1"
    root: Path

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        match parts:
            case ["api", "models", "ORG", "NAME", "refs"]:
                names = [p.name for p in self.root.iterdir()]
                refs = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": n} for n in sorted(names)]
                self._say(200, json.dumps({"branches": refs, "tags": [], "converts": []}).encode())
            case ["api", "models", "ORG", "NAME", "revision", revision] if (self.root / revision).is_dir():
                files = [{"rfilename": str(p.relative_to(self.root / revision))}
                         for p in sorted((self.root / revision).rglob("*")) if p.is_file()]  # fmt: skip
                self._say(200, json.dumps({"id": "ORG/NAME", "sha": revision, "siblings": files}).encode())
            case ["ORG", "NAME", "resolve", revision, *path] if (self.root / revision / "/".join(path)).is_file():
                headers = {"X-Repo-Commit": revision, "ETag": f'"{revision}-{"-".join(path)}"'}
                self._say(200, (self.root / revision / "/".join(path)).read_bytes(), **headers)
            case ["api", "models", "ORG", "NAME", *_]:
                self._say(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
            case _:
                self._say(404, b"{}", **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _say(self, status: int, body: bytes, **headers: str) -> None:
        self.server.asked.append((self.command, self.path))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    root = tmp_path / "revisions"
    for seed, revision in enumerate(("main", "step0", "step1000")):
        interop.write(CONFIG, draw(CONFIG, seed), None, root / revision)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Hub,), {"root": root}))
    server.asked = []
    here = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, here)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", here)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server, root
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_revision_is_fetched_and_dropped(served):
    assert [interop.step_of(f"hf:ORG/NAME@{r}") for r in interop.revisions("hf:ORG/NAME")] == [None, 0, 1000]
    for place, seed in {"hf:ORG/NAME": 0, "hf:ORG/NAME@step1000": 2}.items():
        with interop.local(place) as folder:
            assert interop.open(folder).config == CONFIG
            same(interop.open(folder).params(), draw(CONFIG, seed))
        assert not Path(folder).exists()


def test_only_what_is_read_is_fetched(served):
    server, root = served
    (root / "main" / "consolidated.safetensors").write_text("all once more")
    (root / "main" / "pytorch_model.bin").write_text("a pickle")
    (root / "main" / "onnx").mkdir()
    (root / "main" / "onnx" / "model.safetensors").write_text("another form")
    with interop.local("hf:ORG/NAME") as folder:
        assert sorted(p.name for p in Path(folder).iterdir() if p.is_file()) == ["config.json", "model.safetensors"]
    server.asked.clear()
    assert interop.peek("hf:ORG/NAME") == CONFIG
    assert not any("safetensors" in path for _, path in server.asked)


def test_a_folder_is_where_it_is(tmp_path):
    interop.write(CONFIG, draw(CONFIG), None, tmp_path / "model")
    with interop.local(str(tmp_path / "model")) as folder:
        assert folder == str(tmp_path / "model")
    assert (tmp_path / "model").exists() and interop.peek(folder) == CONFIG


def test_what_the_hub_has_not_is_said_in_one_line(served):
    server, root = served
    for place, words in {
        "hf:ORG/OTHER": "hf:ORG/OTHER could not be fetched: RepositoryNotFoundError",
        "hf:ORG/NAME@step7": "hf:ORG/NAME@step7 could not be fetched: RevisionNotFoundError",
        "hf:NAME": "hf:NAME is no name of the hub: give hf:ORG/NAME or hf:ORG/NAME@REVISION",
        "hf:a/../b": "is no name of the hub",
    }.items():
        with pytest.raises(InputError, match=words) as e, interop.local(place):
            pass
        assert "\n" not in str(e.value)
    (root / "main" / "model.safetensors").rename(root / "main" / "pytorch_model.bin")
    with pytest.raises(InputError, match="hf:ORG/NAME has no .*safetensors"), interop.local("hf:ORG/NAME"):
        pass


def test_a_hub_that_does_not_answer_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match="hf:ORG/NAME could not be fetched: .*Connect") as e:
        interop.peek("hf:ORG/NAME")
    assert "\n" not in str(e.value)
