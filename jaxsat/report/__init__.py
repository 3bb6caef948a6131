"""Tables, figures, claims and one self-contained HTML page, from the measurements, the runs and the law fits alone."""

from jaxsat.report.claims import Claim, Measured, over_seeds
from jaxsat.report.page import Figure, Section, Table, write

__all__ = ["Claim", "Figure", "Measured", "Section", "Table", "over_seeds", "write"]
