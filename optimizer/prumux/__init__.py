"""A compiler for transformer encoders."""
