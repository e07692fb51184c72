"""Helpers of the pass `bag`: they fit the vectors of pieces and pairs."""
