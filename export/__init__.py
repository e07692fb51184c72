"""One target a file, and what checks, times and serves the result."""
