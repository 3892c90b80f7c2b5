"""Before and after on one page: takes arrays and values, writes a self-contained HTML file.

May import diagnosis (whose page it writes too), metrics, render, files and errors.
"""

from distill.report.page import write_report
from distill.report.page_data import (
    DATA,
    HALF,
    Cell,
    Crop,
    Edges,
    Headline,
    Measure,
    Report,
    Routing,
    Sampler,
    Spectrum,
    TextTable,
    check_columns,
    check_report,
)

__all__ = [
    "DATA",
    "HALF",
    "Cell",
    "Crop",
    "Edges",
    "Headline",
    "Measure",
    "Report",
    "Routing",
    "Sampler",
    "Spectrum",
    "TextTable",
    "check_columns",
    "check_report",
    "write_report",
]
