"""Helpers of `mux` and `warm-up`."""
