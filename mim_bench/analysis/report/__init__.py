"""The report: every table, figure and picture of `results/` on one page that needs nothing but itself."""
