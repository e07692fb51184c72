"""Architectures, one file each. A new file here is found by itself; see passes/README.md."""
