"""What a user types and reads: exit codes, messages on one line, progress, and directories left as they were."""

import contextlib
import errno
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxsat.cli import main

EXPERIMENT = (Path(__file__).parent / "mine.py").read_text()
CLAIMS = """
import pandas as pd
from jaxsat.claims import Claim, Estimate, above
from jaxsat.claims.papers import GODEY
from jaxsat.measure import Computed


def computed(scale):
    return [Computed("one", lambda: pd.DataFrame({"metric": ["x"], "value": [1.0]}))]


def claim(id, low, high, kind="paper", needs=""):
    estimate = lambda r: Estimate(1.5, low, high, "%", "x", 5)
    return Claim(id, "x is above 1 %.", GODEY, "", "derived", estimate, above(1), lambda r: needs, kind=kind)


CLAIMS = [
    claim("theorem", 1.4, 1.6, kind="check"), claim("up", 1.2, float("inf")), claim("between", -0.5, 2.0),
    claim("pod", 1, 2, needs="a pod"),
]
"""


def files(folder: Path) -> dict[str, int]:
    found = (p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".xxh3"))
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in found}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory, with a corpus and the user's experiment in it."""
    path = tmp_path_factory.mktemp("home")
    words = ["sun", "moon", "stars", "sea", "stone", "tree", "river", "and", "the", "of"]
    lines = [" ".join(np.random.default_rng(i).choice(words, 30)) for i in range(200)]
    (path / "words.txt").write_text("\n".join(lines))
    (path / "mine.py").write_text(EXPERIMENT)
    compiled = jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSAT_CACHE", str(path / "cache"))
        patch.setenv("JAX_NUM_CPU_DEVICES", "8")  # those of this process, which are made before any command starts
        patch.chdir(path)
        yield path
    jax.config.update("jax_compilation_cache_dir", compiled)


@pytest.fixture(scope="module")
def log(home: Path) -> str:
    """What `jaxsat reproduce mine.py` prints into a log."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        assert main(["reproduce", "mine.py"]) == 0
    return stdout.getvalue()


@pytest.fixture
def finished(log: str, home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "runs" / "mine", tmp_path / "finished"))


@pytest.fixture
def wrong(capfd: pytest.CaptureFixture, home: Path) -> Callable[..., str]:
    """Runs a command whose input is wrong; returns what it says."""

    def run(*argv: str) -> str:
        before = files(home)
        capfd.readouterr()
        assert main(list(argv)) == 2
        said = capfd.readouterr().err
        assert said.startswith("jaxsat: ") and said.count("\n") == 1 and len(said) < 400, said
        written = {name for name, time in files(home).items() if before.get(name) != time}
        assert not [name for name in written if not name.startswith("cache/")]
        return said

    return run


@pytest.fixture
def edited(home: Path) -> Iterator[Callable[[str, str], str]]:
    """The user's experiment with one thing changed."""

    def edit(old: str, new: str) -> str:
        assert old in EXPERIMENT
        (home / "edited.py").write_text(EXPERIMENT.replace(old, new))
        return "edited.py"

    yield edit
    (home / "edited.py").unlink(missing_ok=True)


def jaxsat(*argv: str, **kwargs: object) -> subprocess.CompletedProcess:
    """The command in a process of its own, under the settings of these tests."""
    settings = {"JAX_PLATFORMS": "cpu", "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_COMPILATION_CACHE_DIR": ""}
    env = os.environ | settings
    return subprocess.run([sys.executable, "-m", "jaxsat.cli", *argv], env=env, text=True, **kwargs)


# All that goes well.


def test_a_log_has_a_line_a_stage_and_ends_in_the_page(log, home):
    lines = log.splitlines()
    stages = [line.split("%")[1].split()[0] for line in lines[:-1]]
    assert list(dict.fromkeys(stages)) == ["corpus", "train", "measure", "report"]
    assert "5 runs in 1 packs (5) of 1 shapes" in log and "\x1b" not in log
    assert lines[-1] == "runs/mine/report/index.html" and (home / lines[-1]).exists()


def test_a_second_time_only_the_path_is_new(log, home, capfd):
    before = files(home / "runs")
    assert main(["reproduce", "mine.py"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "runs/mine/report/index.html"
    assert files(home / "runs") == before


def test_a_run_that_was_not_expected_to_diverge_fails_its_study(log, finished, edited, capfd):
    file = edited(', "allow_divergence": True', "")
    assert main(["reproduce", file, "--out", str(finished)]) == 1
    said = capfd.readouterr()
    assert "diverged at step" in said.err and "index.html" in said.out


def test_report_rebuilds_and_fit_prints(log, home, capfd):
    page = home / "runs" / "mine" / "report" / "index.html"
    text = page.read_bytes()
    shutil.rmtree(page.parent)
    assert main(["report", "mine.py"]) == main(["fit", "mine.py"]) == 0
    assert page.read_bytes() == text
    assert "mine.py fits no laws" in capfd.readouterr().out


def test_a_report_goes_where_it_is_told_to(log, home, capfd, tmp_path):
    before = files(home / "runs")
    assert main(["report", "mine.py", "--to", str(tmp_path / "page")]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == str(tmp_path / "page" / "index.html")
    assert files(home / "runs") == before


@pytest.fixture(scope="module")
def judged(home: Path) -> list[str]:
    """The lines after the path, of an experiment with claims."""
    (home / "claims.py").write_text(CLAIMS)
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        assert main(["reproduce", "claims.py"]) == 0
    return stdout.getvalue().partition("runs/claims/report/index.html\n")[2].splitlines()


def test_verdicts_are_said_after_the_page(judged, capfd):
    assert [line.split() for line in judged[:-1]] == [
        ["claim", "measured", "verdict"],
        ["up", "1.5", "[1.2,", "no", "bound]", "%", "reproduced"],
        ["between", "1.5", "[-0.5,", "2.0]", "%", "undecided"],
        ["pod", "not", "testable", "at", "this", "scale"],
        ["theorem", "(check)", "1.50", "[1.40,", "1.60]", "%", "reproduced"],
    ]
    assert judged[-1].endswith("arXiv:2404.07647: 1 of 2 claims reproduced, 1 undecided; 1 not testable at this scale.")
    assert main(["report", "claims.py"]) == 0
    assert capfd.readouterr().out.splitlines()[-6:] == judged


def test_index_of_two_studies(log, judged, home, capfd, tmp_path):
    before = files(home / "runs")
    assert main(["index", "runs/mine", "runs/claims", "--to", str(tmp_path / "index.html")]) == 0
    assert capfd.readouterr().out == f"{tmp_path / 'index.html'}\n"
    assert files(home / "runs") == before and not (home / "index.html").exists()
    assert "claims-laptop" in (tmp_path / "index.html").read_text()


def test_dry_run_says_what_is_pending_and_stops(log, home, edited, capfd):
    before = files(home / "runs")
    more = edited("[0, 1]", "[0, 1, 2]")
    assert main(["reproduce", more, "--out", "runs/mine", "--dry-run"]) == 0
    said = capfd.readouterr().out
    assert "train 2 runs in 1 packs" in said and "measure loss (version 2) of 14 checkpoints" in said
    assert main(["train", more, "--out", "new", "--dry-run"]) == 0 and "train 7 runs" in capfd.readouterr().out
    assert files(home / "runs") == before and not (home / "new").exists()


def test_stages_one_at_a_time_where_told(log, tmp_path, capfd):
    out = tmp_path / "elsewhere"
    assert main(["train", "mine.py", "--out", str(out), "--tensorboard"]) == 0
    assert {p.name for p in out.iterdir() if p.name[0] != "."} == {"sweep.json", "runs", "checkpoints"}
    assert list(out.glob("runs/*/tensorboard/*"))
    assert (
        main(["measure", "mine.py", "--out", str(out)]) == 0
        and (out / "measurements" / "mine-laptop-1-of-1.parquet").exists()
    )
    assert "index.html" not in capfd.readouterr().out


def test_show_and_corpus(log, capfd):
    assert main(["show", "runs/mine"]) == 0
    header, *rows = capfd.readouterr().out.splitlines()
    assert header.split() == ["run", "part", "head", "rank", "seed", "step", "loss", "state"] and len(rows) == 5
    assert all("20/20" in row and row.split()[-1] == "done" for row in rows[:4]) and "diverged" in rows[4]
    assert main(["corpus", "list"]) == 0 and "bible_basic" in capfd.readouterr().out
    assert main(["corpus", "prepare", "words.txt"]) == 0 and "200 documents" in capfd.readouterr().out


@pytest.mark.parametrize(
    "command", ["reproduce", "train", "measure", "fit", "report", "index", "show", "corpus prepare", ""]
)
def test_help_says_defaults_and_units(command, capsys):
    with pytest.raises(SystemExit) as e:
        main([*command.split(), "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert e.value.code == 0 and "jaxsat" in said
    if command in ("reproduce", "train", "measure", "fit", "report"):
        assert "(default: laptop)" in said and "(default: runs/NAME)" in said and "minutes on 2 cores" in said


def test_a_terminal_shows_a_bar(log):
    reader, writer = pty.openpty()
    assert jaxsat("measure", "mine.py", stdout=writer).returncode == 0
    os.close(writer)
    shown = b""
    with contextlib.suppress(OSError):  # how the other end of a terminal says that it has closed
        while some := os.read(reader, 4096):
            shown += some
    os.close(reader)
    assert "━" in shown.decode() and b"\x1b[" in shown


# All that is wrong, in one line, and nothing touched.


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("model.head_rank\": [2", "model.haed_rank\": [2", "did you mean 'model.head_rank'"),
        ("[2, 8]", "[2, 9]", "model.head_rank = 9 is above model.width = 8"),
        ("heads=1", "heads=3", "not divisible by model.heads = 3: try model.heads = 2"),
        ("words.txt", "nowhere.txt", "cannot read the corpus nowhere.txt: No such file"),
        ("words.txt", "latin.txt", "latin.txt, line 1: not UTF-8"),
        ("words.txt", "words.pdf", "corpus 'words.pdf'"),
        ("words.txt", "wrods", "unknown corpus 'wrods'"),
        ("heldout_tokens", "tokenizer='broken.json', heldout_tokens", "broken.json is not a tokenizer.json"),
        ("heldout_tokens", "tokenizer='none.json', heldout_tokens", "none.json': No such file"),
        ("batch_size=4", "batch_size=4000", "fewer than train.batch_size = 4000"),
        ("context=16", "context=5000", "a row takes model.context + 1 = 5001"),
        ("vocab_size=256", "vocab_size=8", "model.vocab_size = 8: must be at least"),
        ("def sweeps(scale):", "def sweeps(scale:", "edited.py, line 7"),
    ],
)  # fmt: skip
def test_a_wrong_experiment(edited, wrong, home, old, new, said):
    (home / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    (home / "broken.json").write_text('{"version": "1.0"')
    assert said in wrong("reproduce", edited(old, new))
    assert not (home / "runs" / "edited").exists()


@pytest.mark.parametrize(
    "argv, said",
    [
        (["train", "mine.py", "--layout.model", "0"], "layout.model = 0: must be at least 1"),
        (
            ["plan", "saturation", "--topology", "v5e:2x2", "--layout.runs", "-1"],
            "layout.runs = -1: must be at least 1",
        ),
        (["reproduce", "saturatoin"], "unknown experiment 'saturatoin'; did you mean 'saturation'"),
        (["reproduce", "nothing.py"], "no file nothing.py"),
        (["measure", "mine.py", "--out", "new"], "no checkpoints of run"),
        (["report", "mine.py", "--out", "new"], "no measurements of mine yet"),
        (["fit", "mine.py", "--out", "new"], "no measurements of mine yet"),
        (["reproduce", "mine.py", "--out", "words.txt"], "words.txt is a file: choose another --out"),
        (
            ["reproduce", "mine.py", "--out", "words.txt/out"],
            "words.txt/out cannot be a folder: a file is in its place",
        ),
        (["reproduce", "mine.py", "--out", "."], "is not empty and holds no sweep.json"),
        (["show", "."], "holds no sweep.json"),
        (["show", "a\nb\udcff"], r"a\nb\udcff holds no sweep.json"),
        (["index", "x" * 300], "File name too long: x"),
        (["index", "."], ". has no reports yet"),
        (["index", "runs/mine", "--to", "mine.py"], "mine.py exists and is no index of jaxsat"),
        (["corpus", "prepare", "bible_wbe"], "did you mean 'bible_web'"),
    ],
)
def test_wrong_names(wrong, argv, said):
    assert said in wrong(*argv)


def test_a_bucket_without_its_library_is_said(wrong, monkeypatch):
    def run(_):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr("jaxsat.cli.run", run)
    assert "Please install gcsfs to access Google Storage, or give a folder" in wrong("show", "gs://bucket/x")


def test_storage_that_does_not_answer_is_said_and_passes(home, monkeypatch, capsys):
    class Unreached(OSError):
        __module__ = "aiohttp.client_exceptions"

    def run(_):
        raise Unreached("Cannot connect to host\n[Name or service not known]")

    monkeypatch.setattr("jaxsat.cli.run", run)
    assert main(["show", "gs://bucket/x"]) == 75
    said = "storage does not answer (aiohttp: Cannot connect to host [Name or service not known])"
    assert capsys.readouterr().err == f"jaxsat: {said}; the same command continues\n"


def test_a_checkpoint_directory_of_another_model(finished, edited, wrong):
    with contextlib.redirect_stdout(io.StringIO()):
        other = finished.parent / "other"
        assert main(["train", edited("[2, 8]", "[2, 4]"), "--out", str(other)]) == 0
    (theirs,), (ours,) = other.glob("checkpoints/*"), finished.glob("checkpoints/*")
    shutil.rmtree(ours)
    shutil.copytree(theirs, ours)
    shutil.rmtree(finished / "measurements")
    before = files(finished)
    for stage in ("train", "measure"):
        assert "holds checkpoints of other runs" in wrong(stage, "mine.py", "--out", str(finished))
    assert files(finished) == before


@pytest.mark.parametrize(
    "code, said",
    [
        (errno.ENOSPC, "No space left on device: /data/x; make room: the same command continues"),
        (errno.EACCES, "Permission denied: /data/x; choose another --out"),
    ],
)
def test_a_disk_that_is_full_or_closed(edited, wrong, code, said):
    raising = f"raise OSError({code}, {os.strerror(code)!r}, '/data/x')"
    assert said in wrong("reproduce", edited("return [", f"{raising}\n    return ["))


def test_what_is_a_bug_of_ours_stays_one(home, monkeypatch):
    monkeypatch.setattr("jaxsat.study.Study.train", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["reproduce", "mine.py"])


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("return [", "1 / 0\n    return [", "edited.py, line 13: ZeroDivisionError: division by zero"),
        ("return [", "open('nowhere')\n    return [", "edited.py, line 13: FileNotFoundError:"),
        ("width=8", "widht=8", "unknown field of ModelConfig 'widht'; did you mean 'width'?"),
        ("def sweeps(scale)", "def sweeps()", "sweeps must be a function of one argument, the scale"),
        ('"seed": [0, 1]', '"seed": 3', "seed = 3: an axis is a list of values, such as [3]"),
        ('Sweep("main", base, small)', "Sweep(base, small)", "needs a name, a base Run and points"),
        ("from jaxsat.sweep", "import helperr\nfrom jaxsat.sweep", "edited.py, line 4: no module 'helperr'"),
    ],
)  # fmt: skip
def test_a_slip_in_the_users_file_is_one_line(edited, wrong, old, new, said):
    assert said in wrong("train", edited(old, new))


@pytest.mark.parametrize(
    "raised, code, said",
    [
        ("KeyboardInterrupt", 130, "interrupted; the same command continues"),
        ("__import__('jaxsat.train').train.Preempted('stopped at step 3')", 75, "stopped at step 3"),
    ],
)
def test_stopped_is_neither_done_nor_wrong(edited, capfd, raised, code, said):
    assert main(["reproduce", edited("return [", f"raise {raised}\n    return [")]) == code
    assert said in capfd.readouterr().err


@pytest.mark.parametrize(
    "argv, said",
    [
        (["reproduce", "mine.py", "--scale", "laptpo"], "'laptop', 'workstation', 'pod'"),
        (["reproduce", "mine.py", "--scael", "pod"], "--scale"),
        (
            ["reprodcue", "mine.py"],
            "fit, detect, ngrams, report, plan, index, show, check, import, export, evaluate, generate",
        ),
        (["reproduce"], "NAME|FILE"),
        ([], "reproduce"),
    ],
)
def test_wrong_flags(argv, said, capfd):
    with pytest.raises(SystemExit) as e:
        main(argv)
    captured = capfd.readouterr()
    assert e.value.code == 2 and said in " ".join(captured.err.replace("│", "").split()) and captured.out == ""


def test_a_process_of_its_own(home):
    done = jaxsat("reproduce", "saturatoin", capture_output=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "jaxsat: unknown experiment 'saturatoin'; did you mean 'saturation'?; the path of your own ends in .py\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, code, said", [(signal.SIGINT, 130, "stopped at step"), (signal.SIGTERM, 75, "stopped at step")]
)
def test_a_signal_in_training(edited, tmp_path, number, code, said):
    out = tmp_path / "out"
    argv = [sys.executable, "-m", "jaxsat.cli", "train", edited("steps=20", "steps=1000000"), "--out", str(out)]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        while not list(out.glob("checkpoints/*/8")):
            assert process.poll() is None
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code and said in stderr and stderr.count("\n") == 1
    assert list(json.loads((out / "sweep.json").read_text())["experiments"]) == ["edited-laptop"]


def assert_ends(argv: list[str], number: int, code: int) -> None:
    """At a signal, once it has said that it is there."""
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stderr.startswith("jaxsat: ") and stderr.endswith("; the same command continues\n")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_between_the_loops(tmp_path, number, code):
    """Where an exception of a signal handler would be lost: what is raised in a garbage collection is only printed."""
    file = tmp_path / "slow.py"
    file.write_text(
        "import gc, time\nprint('here', flush=True)\ngc.callbacks.append(lambda *_: time.sleep(60))\ngc.collect()\n"
    )
    argv = [sys.executable, "-m", "jaxsat.cli", "reproduce", str(file), "--out", str(tmp_path / "out")]
    assert_ends(argv, number, code)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_in_what_does_not_return(tmp_path, number, code):
    """As in a compilation of minutes, where no handler of Python is called."""
    file = tmp_path / "slow.py"
    file.write_text("import hashlib\nprint('here', flush=True)\nhashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n")
    program = "import sys; from jaxsat import cli, watch; watch.GRACE = 0.5; sys.exit(cli.main(sys.argv[1:]))"
    argv = [sys.executable, "-c", program, "reproduce", str(file), "--out", str(tmp_path / "out")]
    assert_ends(argv, number, code)
