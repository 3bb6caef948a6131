"""Models of Hugging Face's kind in and out."""

from jaxsat.interop.export import write
from jaxsat.interop.hub import HUB, local, peek, revisions
from jaxsat.interop.names import step_of
from jaxsat.interop.source import Source

open = Source

__all__ = ["HUB", "Source", "local", "open", "peek", "revisions", "step_of", "write"]
