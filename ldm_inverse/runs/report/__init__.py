"""The page of a run. Nothing is imported here, so that the programs' `--help` answers at once."""

REPORT = "report.html"
INLINED_MB = 24  # of pictures that are part of the page
