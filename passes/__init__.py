"""One pass a file; the file is named after the pass."""
