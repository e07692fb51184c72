"""The measurements of a run: report.json, report.html and the table on the terminal."""
