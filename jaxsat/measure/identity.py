"""Whose numbers the measure of a user gives: told by the code of its function, not by the name of its file.

A file that is renamed keeps its numbers, two measures of one name and other code have numbers of their own, and those
of a function that is edited are made again. Comments, docstrings and layout are no part of it.
"""

import ast
import dataclasses
import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from numbers import Number
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any


def identity(of: Any, folder: Path) -> str:
    """A hash of a function with what it names in the Python files of `folder`, its arguments and what it closes over:
    numbers, texts, functions, and lists, dicts, dataclasses and objects of the folder's classes with them; of an array
    the shape, of others the type. What lies elsewhere is known by its name: "" for a bare function of jaxsat."""
    found = _Reader(folder.resolve()).value(of)
    if isinstance(found, str) and found.startswith("jaxsat."):
        return ""
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:8]


class _Reader:
    def __init__(self, folder: Path):
        self._folder, self._seen = folder, set()

    def value(self, x: Any) -> Any:
        """As JSON, the same in every process and Python."""
        if x is None or isinstance(x, str | bytes | Number | Path):
            return repr(x.item() if hasattr(x, "item") else x)
        if isinstance(x, set | frozenset):
            return sorted(map(self.value, x), key=json.dumps)
        if isinstance(x, Mapping | Sequence):
            return [self.value(item) for item in (x.items() if isinstance(x, Mapping) else x)]
        if isinstance(x, functools.partial):
            return ["partial", self.value([x.func, x.args, x.keywords])]
        x = inspect.unwrap(x)  # of jax.jit
        if isinstance(x, FunctionType):
            return self._function(x)
        if inspect.ismethod(x):
            return ["method", self.value([x.__func__, x.__self__])]
        if inspect.ismodule(x):
            return self._module(x)
        if hasattr(x, "__qualname__"):
            return self._class(x)
        beside = self._class_in(type(x)) is not None
        inside = vars(x) if hasattr(x, "__dict__") and (beside or dataclasses.is_dataclass(x)) else {}
        kind = self._class(type(x)) if beside else type(x).__qualname__
        return [kind, str(getattr(x, "shape", "")), self.value(inside)]

    def _module(self, x: ModuleType) -> Any:
        tree = self._tree(getattr(x, "__file__", None), x.__name__)
        if not tree or x in self._seen:
            return x.__name__
        self._seen.add(x)
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        return [_shape(tree.body), self._named({name for node in imports for name in _bound(node)}, tree, vars(x))]

    def _class(self, x: Any) -> Any:
        """Of a class, or of what is a part of one."""
        found = self._class_in(x)
        if not found or x in self._seen:
            return x.__qualname__ if found else f"{x.__module__}.{x.__qualname__}"
        self._seen.add(x)
        tree, nodes = found
        of = vars(sys.modules[x.__module__])
        return [x.__qualname__, _shape(nodes), self._named(set().union(*map(_free, nodes)), tree, of, nodes)]

    def _class_in(self, x: Any) -> tuple[ast.Module, list[ast.AST]] | None:
        """The file of the folder that a class stands in, and where it does."""
        tree = self._tree(getattr(sys.modules.get(x.__module__), "__file__", None), x.__module__)
        name = x.__qualname__.rpartition(".")[2]
        return tree and (tree, [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == name])

    def _function(self, f: FunctionType) -> Any:
        if f in self._seen:  # functions may name or close over each other
            return f.__qualname__
        self._seen.add(f)
        tree, held = self._tree(f.__code__.co_filename, f.__module__), [c.cell_contents for c in f.__closure__ or ()]
        if not tree:  # what one of jaxsat closes over its measure has in its name
            name = f"{f.__module__}.{f.__qualname__}"
            return [name, self.value(held)] if held and not name.startswith("jaxsat.") else name
        nodes = _nodes(f.__code__, tree)
        named = self._named(set().union(*map(_free, nodes)) - {*f.__code__.co_freevars}, tree, f.__globals__, nodes)
        return [_shape(nodes), named, self.value([*held, f.__defaults__, f.__kwdefaults__])]

    def _named(
        self, names: set[str], tree: ast.Module, of: Mapping[str, Any], nodes: Sequence[ast.AST] = ()
    ) -> list[str]:
        """What is named at the top of a file beside `nodes`, and what that names; `of`, what its imports stand for."""
        named, todo = set(), sorted(names)
        for name in todo:
            for node in tree.body:
                if name not in _bound(node) or node in nodes:
                    continue
                if isinstance(node, ast.Import | ast.ImportFrom):
                    named.add(json.dumps(self.value(of.get(name))))
                else:
                    named.add(json.dumps(_shape(node)))
                    todo += sorted(_free(node) - {*todo})
        return sorted(named)

    def _tree(self, file: str | None, module: str | None) -> ast.Module | None:
        """Of a file of the folder; None for those of jaxsat itself, whose versions tell when they change."""
        path = Path(file or "").resolve()
        ours = str(module).startswith("jaxsat.")
        beside = path.parent == self._folder and path.suffix == ".py" and path.is_file()
        return _parsed(path.read_bytes()) if beside and not ours else None


@functools.lru_cache(8)
def _parsed(source: bytes) -> ast.Module:
    return ast.parse(source)


def _nodes(code: CodeType, tree: ast.Module) -> list[ast.AST]:
    """The function of this code; of lambdas on one line the one whose body it computes."""
    found = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.Lambda) and getattr(node, "name", "<lambda>") == code.co_name
        and min(n.lineno for n in [node, *getattr(node, "decorator_list", [])]) == code.co_firstlineno
    ]  # fmt: skip
    spans = {(line, column, last, end) for line, last, column, end in code.co_positions()}
    place = lambda body: (body.lineno, body.col_offset, body.end_lineno, body.end_col_offset)
    return [node for node in found if isinstance(node, ast.Lambda) and place(node.body) in spans] or found


def _bound(node: ast.stmt) -> set[str]:
    """Names that a statement at the top of a file makes or changes."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    inside = list(ast.walk(node))
    loops = {n for c in inside if isinstance(c, ast.comprehension) for n in ast.walk(c.target)}
    changing = [n for n in inside if isinstance(getattr(n, "ctx", n), ast.Store | ast.Expr) and n not in loops]
    names = {n.id for change in changing for n in ast.walk(change) if isinstance(n, ast.Name)}
    imports = [alias for n in inside if isinstance(n, ast.Import | ast.ImportFrom) for alias in n.names]
    return names | {alias.asname or alias.name.partition(".")[0] for alias in imports}


def _free(node: ast.AST) -> set[str]:
    """Names that a function, or another tree, takes from outside."""
    names = set().union(*map(_free, ast.iter_child_nodes(node)))
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        names.add(node.id)
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        stored = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        names -= {*stored, *(n.arg for n in ast.walk(node.args) if isinstance(n, ast.arg))}
    return names


def _shape(node: Any) -> Any:
    """Of syntax trees all but places and statements that do nothing, such as docstrings."""
    if isinstance(node, list):
        return [_shape(n) for n in node if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [[key, _shape(of)] for key, of in ast.iter_fields(node) if of not in (None, [])]
    return [type(node).__name__, *fields]  # without empty ones, of which newer Pythons have more
