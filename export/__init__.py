"""The targets, one a file. The folders contain code that checks, times and serves results."""
