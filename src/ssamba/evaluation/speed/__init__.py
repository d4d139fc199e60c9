"""``ssamba bench``: time and memory of inference against the number of tokens, for SSAMBA and SSAST."""

from ssamba.evaluation.speed.measure import Case, Result, Settings, measure_all
from ssamba.evaluation.speed.report import speed_table, write_report

__all__ = ["Case", "Result", "Settings", "measure_all", "speed_table", "write_report"]
