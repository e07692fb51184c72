"""Least-squares refit of pruned branches, and the curvature of their outputs."""
