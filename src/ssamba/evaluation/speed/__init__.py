"""``ssamba bench``: time and memory of inference against the number of tokens, for SSAMBA and SSAST."""

from ssamba.evaluation.speed.measure import Case, Result, Settings, measure_all
from ssamba.evaluation.speed.report import as_markdown, write_report

__all__ = ["Case", "Result", "Settings", "as_markdown", "measure_all", "write_report"]
