"""Charts, tables and verdicts on one self-contained HTML page, from results alone.

A name is loaded when it is asked for: a page over finished studies (`index`) needs neither pandas nor matplotlib.
"""

import importlib
from typing import Any

_ROOMS = {"Chart": "chart", "Drawing": "section", "Section": "section", "Table": "section",
          "check_names": "page", "sources_of": "page", "write": "page"}  # fmt: skip
__all__ = [*_ROOMS, "standard"]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(importlib.import_module(f"jaxsat.report.{_ROOMS[name]}"), name)
    if name == "standard":
        return importlib.import_module("jaxsat.report.standard")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
