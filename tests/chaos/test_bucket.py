"""A study on object storage that fails one request in fifty."""

import importlib.util
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec.config
import pandas as pd
import pytest
from etils import epath

from jaxsat.check import check
from tests.chaos import small
from tests.chaos.small import numbers

ROOT = Path(__file__).parents[2]
OUT = "gs://bucket/out"
lacking = [name for name in ("gcsfs", "gcp_storage_emulator") if importlib.util.find_spec(name) is None]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(lacking), reason="pip install 'jaxsat[bench]'")]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with an experiment, and a bucket that this process and those that it starts know."""
    small.write(tmp_path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    url = f"http://localhost:{port}"
    env = {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "FSSPEC_GCS_TOKEN": "anon",
           "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "NO_GCE_CHECK": "true", "GCE_METADATA_HOST": "localhost:1",
           "JAX_PLATFORMS": "cpu", "JAXSAT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}  # fmt: skip
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setitem(fsspec.config.conf, "gcs", {"use_listings_cache": False, "token": "anon"})
    command = [sys.executable, "-m", "tests.chaos.bucket", port]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as bucket:
        assert bucket.stdout.readline() == "ready\n"
        yield tmp_path
        bucket.kill()


def start(home: Path, out: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "jaxsat.cli", "reproduce", "small.py", "--out", out]
    return subprocess.Popen(command, cwd=home, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(home: Path, out: str) -> tuple[int, str]:
    with start(home, out) as process:
        _, said = process.communicate(timeout=900)
    return process.returncode, said


def test_killed_on_a_bucket_that_fails(home):
    """It is killed, a second launch is refused, and the end is that of a quiet study on a disk, bit for bit."""
    assert finish(home, "quiet")[0] == 0
    out = epath.Path(OUT)
    first = start(home, OUT)
    while not (out / ".leases" / "train-1-of-1.json").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.5)
    code, said = finish(home, OUT)
    assert code == 2 and f"{OUT} is written by process {first.pid} on " in said, said
    while not list(out.glob("checkpoints/*/1")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    code, said = finish(home, OUT)
    assert code == 0, said
    pd.testing.assert_frame_equal(numbers(OUT), numbers(home / "quiet"), check_exact=True)
    assert list(check(OUT)) == []
    assert not (home / "gs:").exists() and not Path("gs:").exists()
    assert "training was taken up again 1 times" in said
    manifest = next(out.glob("runs/*/metrics.jsonl"))
    manifest.write_bytes(manifest.read_bytes().replace(b"loss", b"lose", 1))
    assert any(str(manifest) in line for line in check(OUT))
