"""The command line: parses, calls, prints. Exit codes: 0 done; 2 the input is wrong; 75 preempted and 130 interrupted,
the same command continues; 1 a bug or a failed run."""

import contextlib
import dataclasses
import errno
import json
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from jaxsat.config import InputError, Layout, Preempted
from jaxsat.fit_options import Options as TableOptions
from jaxsat.fit_options import is_table

# Read when NumPy and SciPy load, which is after this. Devices of one CPU that are in OpenBLAS at once, for QR and SVD,
# fight for its threads: measuring 6 runs of width 64 took 37 s of two cores' time instead of 27.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
DESCRIPTION = "Sweeps of small language models over depth, width and head rank: train, measure, fit, report."
Positional = tyro.conf.Positional
# Parts of the time of a whole study, for the estimate of what remains; measured at the laptop scale.
SHARES = {"corpus": 0.02, "train": 0.68, "measure": 0.15, "compute": 0.10, "report": 0.05}


@dataclass(frozen=True)
class What:
    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME|FILE")]
    """An experiment that comes with jaxsat, or the path of your own Python file."""
    scale: Literal["laptop", "workstation", "pod"] = "laptop"
    """laptop: minutes on 2 cores; workstation: about an hour on one GPU; pod: the paper's own sizes."""


@dataclass(frozen=True)
class Where(What):
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/NAME)")] = None
    """Output directory. The default ends in -SCALE unless that is laptop."""


@dataclass(frozen=True)
class Compute(Where):
    layout: Layout = Layout()
    share: Annotated[str | None, tyro.conf.arg(metavar="I/N", help_behavior_hint="(default: all)")] = None
    """Only the I-th of N shares of the work, for N jobs with one --out; the report is made after them, without it."""
    dry_run: bool = False
    """Say what would be trained, measured and computed, and stop."""


@dataclass(frozen=True)
class Reproduce(Compute):
    """Train, measure, fit and report. The same command again continues, or finishes at once."""

    tensorboard: bool = False
    """Also write TensorBoard files under runs/<id> (needs the extra: pip install 'jaxsat[tensorboard]')."""


@dataclass(frozen=True)
class Train(Reproduce):
    """Train the runs of a sweep, from their newest checkpoints."""


@dataclass(frozen=True)
class Measure(Compute):
    """Measure every checkpoint that a measure has not seen yet, and what is computed without a model."""


@dataclass(frozen=True)
class Fit(Where):
    """Fit scaling laws and print their constants with intervals: those of an experiment to its measurements, or one
    form to any TABLE (.csv, .csv.gz, .parquet or .jsonl)."""

    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME|FILE|TABLE")]
    """An experiment that comes with jaxsat, the path of your own Python file, or that of a table."""
    table: Annotated[TableOptions, tyro.conf.arg(name="")] = TableOptions()


@dataclass(frozen=True)
class Report(Where):
    """Rebuild the report from the measurements. Needs neither text nor network."""

    to: Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: in DIR)")] = None
    """Where the report is put, if not in the output directory: of a study that is not yours to write to."""


@dataclass(frozen=True, kw_only=True)
class Plan(What):
    """Compile a sweep for TPUs that are not here: what fits, memory, FLOPs, chip-hours. Exit code 1: it does not fit.

    Needs the extra: pip install 'jaxsat[tpu]'. A shape takes minutes the first time."""

    topology: Annotated[str, tyro.conf.arg(metavar="CHIP:SHAPE")]
    """One slice, such as v5e:16x16. Chips: v4, v5e, v5p, v6e."""
    slices: int = 1
    """Slices, between which the network is slow."""
    layout: Layout = Layout()
    mfu: float = 0.4
    """The part of the chips' peak FLOP/s that is taken to be used, for the chip-hours."""
    json: bool = False
    """JSON instead of a table."""


@dataclass(frozen=True)
class Show:
    """A table of the runs in an output directory: step, loss, state."""

    out: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")]
    """An output directory, such as runs/saturation."""


@dataclass(frozen=True)
class CorpusList:
    """The corpora that come with jaxsat."""


@dataclass(frozen=True)
class CorpusPrepare:
    """Build a corpus now, so that training need not."""

    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME|FILE")]
    """A name from `jaxsat corpus list`, a TFDS name such as c4/en, or the path of a .txt or .jsonl file."""


Corpus = Annotated[CorpusList, tyro.conf.subcommand("list")] | Annotated[CorpusPrepare, tyro.conf.subcommand("prepare")]
Command = (
    Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Measure, tyro.conf.subcommand("measure")]
    | Annotated[Fit, tyro.conf.subcommand("fit")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Corpus, tyro.conf.subcommand("corpus", description="List or prepare corpora.")]
)


def main(argv: list[str] | None = None) -> int:
    command = tyro.cli(Command, prog="jaxsat", description=DESCRIPTION, args=argv)
    main_thread = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, _end) for s in (signal.SIGTERM, signal.SIGINT)} if main_thread else {}
    try:
        return _leave(_main(command))
    except BaseException:
        _leave(1, traceback.format_exc())
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _: object) -> None:
    """Ends the process at once, between the loops, which hear signals themselves (`jaxsat.stop`): nothing is half done
    there that a kill would spoil. An exception would be lost where garbage is collected, or become an ImportError where
    JAX is imported (4 of 14 tries)."""
    code, said = (130, "interrupted") if number == signal.SIGINT else (75, "stopped")
    cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""  # hidden by a progress bar
    os.write(2, f"{cursor}jaxsat: {said}; the same command continues\n".encode())
    with contextlib.suppress(RuntimeError):  # it came in the middle of a print
        sys.stdout.flush()
    os._exit(_leave(code))


def _leave(code: int, said: str = "") -> int:
    hosts = sys.modules.get("jaxsat.hosts")  # not there yet: nobody to leave
    return hosts.leave(code, said) if hosts else code


def _main(command: Command) -> int:
    try:
        return run(command)
    except KeyboardInterrupt as e:
        return _say(str(e) or "interrupted; the same command continues from the last checkpoint", 130)
    except InputError as e:
        return _say(str(e), 2)
    except Preempted as e:
        return _say(str(e), 75)
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and e.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise
        todo = "make room: the same command continues" if full else "choose another --out"
        return _say(f"{e.strerror}: {e.filename or getattr(command, 'out', None) or os.getcwd()}; {todo}", 2)


def run(command: Command) -> int:
    """The exit code."""
    console = Console(width=None if sys.stdout.isatty() else 160)  # in a log nothing is cut
    match command:
        case CorpusList():
            console.print(_corpora())
            return 0
        case CorpusPrepare(name):
            console.print(_prepare(name))
            return 0
        case Show(out):
            console.print(_runs(out))
            return 0
        case Plan():
            return _plan(command, console)
        case Fit(name, scale, out) if is_table(name):
            if (scale, out) != ("laptop", None):
                raise InputError("--scale and --out are of an experiment, not of a table")
            return _fit_table(command, console)
    from jaxsat import parallel

    if isinstance(command, Fit) and command.table != TableOptions():
        raise InputError(f"{command.name} is no table (.csv, .csv.gz, .parquet, .jsonl): only --scale and --out apply")
    layout = command.layout if isinstance(command, Compute) else Layout()
    parallel.start(layout)
    from jaxsat import checkpoints, hosts
    from jaxsat.study import Study

    checkpoints.quiet()
    share = _share(command.share) if isinstance(command, Compute) else (1, 1)
    study = Study(command.name, command.scale, command.out, layout, share)
    if isinstance(command, Compute) and command.dry_run:
        for line in study.pending():
            print(line)
        return 0
    said = ""
    with _Bar(console) as bar:
        match command:
            case Reproduce() if type(command) is Reproduce:
                study.train(bar, command.tensorboard)
                study.measure(bar)
                if share == (1, 1):
                    bar("report", 0.0, "fits, figures and claims")
                    said = str(study.report())
                else:
                    said = f"share {command.share} of {study.out} is measured"
            case Train():
                study.train(bar, command.tensorboard)
            case Measure():
                study.measure(bar)
            case Report():
                said = str(study.report(command.to))
            case Fit():
                results = study.fit()
    if isinstance(command, Fit) and results:
        from jaxsat.report import tables

        if results.laws or not results.not_fitted:
            console.print(_frame(tables.constants(results.laws)) if results.laws else f"{command.name} fits no laws")
        for name, why in results.not_fitted.items():
            print(f"jaxsat: law {name!r} is not fitted: {why}", file=sys.stderr)
    hosts.first(lambda: [print(f"jaxsat: {notice}", file=sys.stderr) for notice in study.notices()])
    if said:
        print(said)
    return 0


def _plan(command: Plan, console: Console) -> int:
    from jaxsat import plan

    say = lambda line: print(line, file=sys.stderr, flush=True)
    found = plan.plan(command.name, command.scale, command.topology, command.slices, command.layout, command.mfu, say)
    if command.json:
        print(json.dumps(dataclasses.asdict(found), indent=1))
    else:
        console.print(_frame(plan.table(found)))
        for line in plan.summary(found):
            console.print(line, highlight=False)
    return int(any(shape.problem for shape in found.shapes))


def _fit_table(command: Fit, console: Console) -> int:
    from jaxsat import fit_table

    found = fit_table.fit_table(command.name, command.table)
    if command.table.json:
        print(json.dumps(found.document(), allow_nan=False))
        return 0
    for said in fit_table.summary(found):
        console.print(said if isinstance(said, str) else _frame(said), highlight=False, markup=False)
    return 0


def _share(text: str | None) -> tuple[int, int]:
    i, _, n = (text or "1/1").partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise InputError(f"--share {text}: must be I/N with I from 1 to N, such as 1/4")
    return int(i), int(n)


def _say(message: str, code: int) -> int:
    print(f"jaxsat: {message}", file=sys.stderr)
    return code


class _Bar:
    """Progress of all stages as one fraction: a bar on a terminal; in a log a line a stage, and every ten seconds."""

    def __init__(self, console: Console):
        self._terminal = console.is_terminal
        columns = [TextColumn("{task.fields[stage]:<8}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"),
                   TimeElapsedColumn(), TextColumn("{task.fields[left]}  {task.description}")]  # fmt: skip
        self._progress = Progress(*columns, console=console, disable=not self._terminal, transient=True)
        self._task = self._progress.add_task("", total=1.0, stage="", left="")
        self._began, self._first, self._stage, self._last_line = time.monotonic(), None, "", 0.0

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, stage: str, fraction: float, what: str) -> None:
        done = sum(share for name, share in SHARES.items() if list(SHARES).index(name) < list(SHARES).index(stage))
        done += SHARES[stage] * fraction
        self._first = done if self._first is None else self._first
        elapsed, gained = time.monotonic() - self._began, done - self._first
        left = f"about {_duration(elapsed * (1 - done) / gained)} left" if gained > 0.01 else ""
        self._progress.update(self._task, completed=done, description=what, stage=stage, left=left)
        if not self._terminal and (stage != self._stage or time.monotonic() - self._last_line > 10):
            self._stage, self._last_line = stage, time.monotonic()
            print(f"{_duration(elapsed):>6} {100 * done:3.0f} % {stage:<8} {what}  {left}", flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m{seconds:02}s"


def _runs(out: str) -> Table:
    from jaxsat.directory import summary

    return _frame(summary(out))


def _corpora() -> Table:
    import pandas as pd

    from jaxsat import corpus

    rows = pd.DataFrame(corpus.list_corpora())
    prepared = [None if pd.isna(size) else f"{size / 1e6:.1f} MB" for size in rows["bytes"]]
    about = rows["description"].str.partition(". ")[0].str.removesuffix(".")
    return _frame(rows[["name", "license"]].assign(prepared=prepared, about=about))


def _prepare(name: str) -> str:
    from jaxsat import corpus

    sizes = [len(text) for _, text in corpus.documents(name)]
    return f"{name}: {len(sizes):,} documents, {sum(sizes):,} characters"


def _frame(frame) -> Table:
    table = Table(*map(str, frame.columns), box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for row in frame.itertuples(index=False):
        table.add_row(*("" if v is None or v != v else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row))
    return table


if __name__ == "__main__":
    sys.exit(main())
