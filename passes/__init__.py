"""The passes. Each file has one pass and its name; the folders contain helpers."""
