"""The passes. Each file contains one pass and has its name; the folders contain helpers."""
