"""Charts, tables and verdicts on one self-contained HTML page, from results alone."""

from jaxsat.report import standard
from jaxsat.report.chart import Chart
from jaxsat.report.page import check_names, sources_of, write
from jaxsat.report.section import Drawing, Section, Table

__all__ = ["Chart", "Drawing", "Section", "Table", "check_names", "sources_of", "standard", "write"]
