"""Architectures, one file each. New files are found automatically; see passes/README.md."""
