"""What a run measured: report.json, report.html and the table on the terminal."""
