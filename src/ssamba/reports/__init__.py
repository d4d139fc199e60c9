"""A run or an index as one page that needs no network: charts, tables and players (docs/report.md)."""
