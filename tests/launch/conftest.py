"""A host as the launchers' scripts find it, and names that break what quotes badly."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HOSTILE = (
    *("two words", "it's", 'say "hi"', "$(touch pwned)", "`touch pwned`", "a;touch pwned", "a && b || c", "a | b > c"),
    *("-rf", "$HOME", "$$HOME", "$(HOME)", "${HOME}", "{braces}", "%s", "a,b=c", "^@^", "@@", "# no comment", "*", "~"),
    *("back\\slash", "!history", "", "déjà vu", "漢字 🙂", ": yaml", "- yaml", "'", "|", "&anchor", "trailing "),
)


@pytest.fixture(scope="session")
def command() -> tuple[str, ...]:
    return ("jaxsat", "reproduce", *HOSTILE, "--scale", "pod", "--out", "gs://bucket/it's $(touch pwned); a,b")


@pytest.fixture
def host(tmp_path: Path) -> Callable[..., list[str]]:
    """Runs a script with bash where every program but jaxsat is a stub, and returns the lines of what was called.

    `codes`: of jaxsat, one a start. Its arguments are in tmp_path/args, each ended by a zero byte.
    """
    stubs = {
        "python3": 'echo "python3 $*" >>"$HOME/calls"; exit ${INSTALLS:-0}',
        "gcloud": 'echo "gcloud $*" >>"$HOME/calls"',
        "curl": 'case "${!#}" in *agent-worker-number) echo ${WORKER:-0};; *tpu-env) echo "$TPU_ENV";; esac',
        "hostname": "echo t1v-n-0",
        "sleep": "exit 0",
        "jaxsat-env/bin/jaxsat": 'printf "%s\\0" "$@" >"$HOME/args"\n'
        'echo "jaxsat $JAXSAT_DISTRIBUTED" >>"$HOME/calls"\n'
        'code=$(head -n 1 "$HOME/codes"); sed -i 1d "$HOME/codes"; exit $code',
    }
    for name, body in stubs.items():
        path = tmp_path / (name if "/" in name else f"stubs/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def run(script: str, codes: tuple[int, ...] = (0,), **environment: str) -> list[str]:
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        (tmp_path / "calls").write_text("")
        env = {"HOME": str(tmp_path), "PATH": f"{tmp_path}/stubs:{os.environ['PATH']}"} | environment
        subprocess.run(["bash", "-c", script], env=env, cwd=tmp_path, timeout=60, check=False)
        assert not (tmp_path / "pwned").exists()
        return (tmp_path / "calls").read_text().splitlines()

    return run


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[[], tuple[str, ...]]:
    """Those of the last jaxsat on the host."""
    return lambda: ("jaxsat", *(tmp_path / "args").read_text().split("\0")[:-1])
