"""The targets, one per file. The folders contain code to check, time and serve results."""
