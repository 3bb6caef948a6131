"""Runs the benchmarks: python -m benchmarks [name ...]; without a name, all of them.

Prints a table and puts the entries into benchmarks/latest.json in place of those of the same name and shape: a list of
{name, shape, ours, rival, unit, ratio, target, detail}, larger ratios better for us; target: of the ratio. A benchmark
whose extra packages are missing is skipped with a line that says so.
"""

import importlib
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxsat.config import unknown

HERE = Path(__file__).parent


def main(names: list[str]) -> int:
    known = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("__"))
    for name in names:
        if name not in known:
            print(unknown("benchmark", name, known), file=sys.stderr)
            return 2
    console, entries = Console(), []
    table = Table("benchmark", "ours", "rival", "ratio", "unit")
    for name in names or known:
        try:
            module = importlib.import_module(f"benchmarks.{name}")
        except ModuleNotFoundError as e:
            print(f"{name}: skipped, {e.name} is not installed (pip install 'jaxsat[bench]')", file=sys.stderr)
            continue
        console.print(f"{name} ...")
        for e in module.bench():
            if "skipped" in e:
                print(f"{e['name']}: skipped, {e['skipped']}", file=sys.stderr)
                continue
            entries.append(e)
            numbers = (f"{e['ours']:.4g}", f"{e['rival']:.4g}", f"{e['ratio']:.2f}")
            table.add_row(e["name"], *numbers, e["unit"])
            console.print(f"  {e['name']}, ratio {e['ratio']:.2f}: {e['detail']}", markup=False, highlight=False)
    console.print(table)
    path = HERE / "latest.json"
    of = {(e["name"], e["shape"]): e for e in [*json.loads(path.read_text()), *entries]}
    path.write_text(json.dumps([of[key] for key in sorted(of)], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
