"""The command line: parses, calls, prints. Exit codes: 0 done; 2 the input is wrong; 75 preempted and 130 interrupted,
the same command continues; 1 a bug or a failed run."""

import contextlib
import dataclasses
import errno
import json
import logging
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from jaxsat.commands import (
    Check,
    Command,
    Compute,
    CorpusList,
    CorpusPrepare,
    Detect,
    Evaluate,
    Export,
    Fit,
    Generate,
    Import,
    Index,
    Measure,
    Ngrams,
    Plan,
    Report,
    Reproduce,
    Show,
    Train,
)
from jaxsat.config import DataConfig, InputError, Layout, Preempted
from jaxsat.fit_options import Options as TableOptions
from jaxsat.fit_options import is_table
from jaxsat.watch import watched

# Read when NumPy and SciPy load, which is after this. Devices of one CPU that are in OpenBLAS at once, for QR and SVD,
# fight for its threads: measuring 6 runs of width 64 took 37 s of two cores' time instead of 27.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
DESCRIPTION = "Sweeps of small language models over depth, width and head rank: train, measure, fit, report."
OF_BUCKETS = ("aiohttp", "botocore", "gcsfs", "google", "s3fs")  # libraries, which may not be there
PLAIN = {"box": None, "header_style": "bold", "padding": (0, 1, 0, 0), "pad_edge": False}  # tables
# Parts of the time of a whole study, for the estimate of what remains; measured at the laptop scale.
SHARES = {"import": 0.0, "corpus": 0.02, "train": 0.68, "measure": 0.15, "compute": 0.10, "report": 0.05}


def main(argv: list[str] | None = None) -> int:
    if hasattr(sys.stdout, "reconfigure"):  # names of files need be no Unicode, nor what a damaged file names
        sys.stdout.reconfigure(errors="backslashreplace")
    for library in OF_BUCKETS:  # what they raise is said in a line; they would log it with tracebacks
        logging.getLogger(library).setLevel(logging.CRITICAL)
    command = tyro.cli(Command, prog="jaxsat", description=DESCRIPTION, args=argv)
    main_thread = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, _end) for s in (signal.SIGTERM, signal.SIGINT)} if main_thread else {}
    with watched(_end) if main_thread else contextlib.nullcontext():
        try:
            return _leave(_main(command))
        except BaseException:
            _leave(1, traceback.format_exc())
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _end(number: int, _: object = None) -> None:
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


def _of_a_peer(e: RuntimeError) -> int:
    hosts = sys.modules.get("jaxsat.hosts")
    return hosts.of_a_peer(e) if hosts else 0


def _main(command: Command) -> int:
    try:
        with _storage_named():
            code = run(command)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt as e:
        return _say(str(e) or "interrupted; the same command continues from the last checkpoint", 130)
    except InputError as e:
        return _say(str(e), 2)
    except Preempted as e:
        return _say(str(e), 75)
    except ImportError as e:
        if not re.search("[Ii]nstall (gcsfs|s3fs) ", str(e)):  # of etils, for a bucket
            raise
        return _say(f"{e}, or give a folder", 2)
    except BrokenPipeError:  # of `| head`; what is still to be written is not, at the end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RuntimeError as e:
        if not (code := _of_a_peer(e)):
            raise
        return _say(f"another process has ended ({str(e).splitlines()[0]:.200}); the same command continues", code)
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and e.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
        todo = "make room: the same command continues" if full else "choose another --out"
        return _say(f"{e.strerror}: {e.filename or getattr(command, 'out', None) or os.getcwd()}; {todo}", 2)


@contextlib.contextmanager
def _storage_named() -> Iterator[None]:
    try:
        yield
    except Exception as e:
        if (library := type(e).__module__.partition(".")[0]) not in OF_BUCKETS:
            raise
        said = " ".join(str(e).split())
        raise Preempted(f"storage does not answer ({library}: {said:.300}); the same command continues") from e


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
        case Index(dirs, to):
            from jaxsat.report import index

            print(index.write(dirs, to))
            return 0
        case Plan():
            return _plan(command, console)
        case Detect():
            return _detect(command, console)
        case Fit(name, scale, out) if is_table(name):
            if (scale, out) != ("laptop", None):
                raise InputError("--scale and --out are of an experiment, not of a table")
            return _fit_table(command, console)
    from jaxsat import parallel

    if isinstance(command, Fit) and command.table != TableOptions():
        raise InputError(f"{command.name} is no table (.csv, .csv.gz, .parquet, .jsonl): only --scale and --out apply")
    parallel.start(layout := command.layout if isinstance(command, Compute | Import) else Layout())
    from jaxsat import checkpoints, hosts

    checkpoints.quiet()
    match command:
        case Check():
            return _check(command.out)
        case Import():
            return _import(command, console)
        case Export():
            return _export(command)
        case Evaluate():
            return _evaluate(command, console)
        case Ngrams():
            return _ngrams(command, console)
        case Generate():
            return _generate(command)
    from jaxsat.study import Study

    share = _share(command.share) if isinstance(command, Compute) else (1, 1)
    only = command.only if isinstance(command, Compute) else ()
    study = Study(command.name, command.scale, command.out, layout, share, only)
    if isinstance(command, Compute) and command.dry_run:
        for line in study.pending():
            print(line)
        return 0
    said, page = "", None
    with _Bar(console) as bar:
        match command:
            case Reproduce() if type(command) is Reproduce:
                trained = study.train(bar, command.tensorboard)
                study.measure(bar, wait=trained)
                if share == (1, 1):
                    bar("report", 0.0, "fits, figures and claims")
                    page = study.report()
                else:
                    said = f"share {command.share} of {study.out} is measured"
            case Train():
                study.train(bar, command.tensorboard)
            case Measure():
                study.measure(bar)
            case Report():
                page = study.report(command.to)
            case Fit():
                results = study.fit()
    if isinstance(command, Fit) and results:
        from jaxsat.report import tables

        if results.laws or not results.not_fitted:
            console.print(_frame(tables.constants(results.laws)) if results.laws else f"{command.name} fits no laws")
        for name, why in results.not_fitted.items():
            print(f"jaxsat: law {name!r} is not fitted: {why}", file=sys.stderr)
    hosts.first(lambda: [print(f"jaxsat: {notice}", file=sys.stderr) for notice in study.notices()])
    if said or page:
        print(said or page)
    if page:
        hosts.first(lambda: _say_verdicts(page.parent / "claims.json", console))
    return int(type(command) is Reproduce and bool(hosts.first(lambda: study.directory.failed(study.experiment.runs))))


def _say_verdicts(path: os.PathLike, console: Console) -> None:
    from jaxsat import verdicts
    from jaxsat.report import numbers

    claims = verdicts.read(path, "remove its folder, and the same command makes it again")
    if not claims:
        return
    table = Table("claim", "measured", "verdict", **PLAIN)
    for c in sorted(claims, key=lambda c: c.kind == "check"):
        measured = numbers.estimate(c.estimate).replace("−", "-") if c.estimate else ""
        table.add_row(c.id + (" (check)" if c.kind == "check" else ""), measured, c.verdict)
    counted = verdicts.tally((c.paper, c.kind, c.verdict) for c in claims)
    for said in (table, *verdicts.headline(counted)):
        console.print(said, highlight=False, markup=False)


def _check(out: str) -> int:
    from jaxsat.check import check

    n = 0
    with _Bar(Console(stderr=True), {"files": 0.1, "arrays": 0.9}) as bar:
        for fault in check(out, bar):
            print(fault, flush=True)
            n += 1
    print(f"{out}: {f'{n} faults' if n else 'all is as it was written'}", file=sys.stderr)
    return int(n > 0)


def _import(command: Import, console: Console) -> int:
    from jaxsat import imports, series

    name = command.name or series.name_of(command.src[0])
    data = DataConfig(corpus=command.corpus)
    asked = series.Import(name, command.src, command.step, command.tokens_per_step, data)
    with _Bar(console) as bar:
        for line in imports.bring(command.to, asked, command.measure, command.layout, bar):
            print(f"jaxsat: {line}", file=sys.stderr)
    console.print(_runs(command.to))
    return 0


def _export(command: Export) -> int:
    from jaxsat import interop, series

    (found,) = series.open_series(command.out, command.run)
    step = found.steps[-1] if command.step is None else command.step
    file = found.tokenizer_file
    tokenizer = file.read_text() if file and file.exists() else None
    interop.write(found.config, found.params(step), tokenizer, command.to)
    print(command.to)
    return 0


def _evaluate(command: Evaluate, console: Console) -> int:
    import pandas as pd

    from jaxsat import evaluate, series

    items = [evaluate.read_items(file) for file in command.items]
    names = [each.name for each in items]
    if len(set(names)) < len(names):
        again = next(name for i, name in enumerate(names) if name in names[:i])
        raise InputError(f"--items: two files are called {again}, by which scores are told apart: rename one")
    frames = []
    for found in series.open_series(command.where, command.run, command.step):
        for step in found.steps if command.step or command.every else found.steps[-1:]:
            for scores in series.scored(command.where, found, step, items, command.cut):
                frames.append(scores.summary.assign(series=found.name, step=step))
                if scores.cut and not command.json:
                    print(f"jaxsat: {found.name}: {scores.cut} contexts were cut", file=sys.stderr)
    table = pd.concat(frames, ignore_index=True)
    table = table[["series", "step", "items", "group", "n", "metric", "value", "low", "high"]]
    if command.json:
        records = table.astype(object).where(table.map(lambda x: x not in (math.inf, -math.inf)), None)
        print(json.dumps(records.to_dict("records"), allow_nan=False))
    else:
        console.print(_frame(table))
    return 0


def _generate(command: Generate) -> int:
    from jaxsat import evaluate, series

    for found in series.open_series(command.where, command.run):
        params = found.params(found.steps[-1] if command.step is None else command.step)
        settings = dict(temperature=command.temperature, top_k=command.top_k, top_p=command.top_p, seed=command.seed)
        texts = evaluate.generate(found.config, params, found.tokenizer, command.prompt, command.tokens, **settings)
        for prompt, text in zip(command.prompt, texts):
            print(prompt + text)
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


def _detect(command: Detect, console: Console) -> int:
    from jaxsat import detect

    c = command
    found, notes = detect.detect(c.table, c.run, c.step, c.value, c.higher_is_better, c.where)
    for note in notes:
        print(f"jaxsat: {note}", file=sys.stderr)
    if command.json:
        print(json.dumps({"runs": detect.records(found)}, allow_nan=False))
    else:
        console.print(_frame(detect.frame(found)))
        console.print(detect.summary(found), highlight=False)
    return 0


def _ngrams(command: Ngrams, console: Console) -> int:
    from jaxsat import ngrams

    c = command
    document, notes = ngrams.ngrams(c.corpus, c.tokenizer, c.vocab_size, c.n, c.contexts, c.values)
    for note in notes:
        print(f"jaxsat: {note}", file=sys.stderr)
    if command.json:
        print(json.dumps(document, allow_nan=False))
        return 0
    console.print(_frame(ngrams.frame(document)))
    said = "{tokens:,} tokens of {vocabulary:,} kinds; {contexts_in_text:,} contexts of {0} tokens".format
    console.print(said(command.n - 1, **document), highlight=False)
    return 0


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

    def __init__(self, console: Console, shares: dict[str, float] = SHARES):
        self._terminal, self._file, self._shares = console.is_terminal, console.file, shares
        columns = [TextColumn("{task.fields[stage]:<8}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"),
                   TimeElapsedColumn(), TextColumn("{task.fields[left]}  {task.description}")]  # fmt: skip
        self._progress = Progress(*columns, console=console, disable=not self._terminal, transient=True,
                                  redirect_stdout=sys.stdout.isatty())  # fmt: skip
        self._task = self._progress.add_task("", total=1.0, stage="", left="")
        self._began, self._first, self._stage, self._last_line = time.monotonic(), None, "", 0.0

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, stage: str, fraction: float, what: str) -> None:
        stages = list(self._shares)
        done = sum(self._shares[name] for name in stages[: stages.index(stage)]) + self._shares[stage] * fraction
        self._first = done if self._first is None else self._first
        elapsed, gained = time.monotonic() - self._began, done - self._first
        left = f"about {_duration(elapsed * (1 - done) / gained)} left" if gained > 0.01 else ""
        self._progress.update(self._task, completed=done, description=what, stage=stage, left=left)
        if not self._terminal and (stage != self._stage or time.monotonic() - self._last_line > 10):
            self._stage, self._last_line = stage, time.monotonic()
            print(f"{_duration(elapsed):>6} {100 * done:3.0f} % {stage:<8} {what}  {left}", file=self._file, flush=True)


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

    sizes = [len(text if isinstance(text, str) else text.whole) for _, text in corpus.documents(name)]
    return f"{name}: {len(sizes):,} documents, {sum(sizes):,} characters"


def _frame(frame) -> Table:
    table = Table(*map(str, frame.columns), **PLAIN)
    for row in frame.itertuples(index=False):
        table.add_row(*("" if v is None or v != v else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row))
    return table


if __name__ == "__main__":
    sys.exit(main())
