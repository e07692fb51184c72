"""Least-squares refit of pruned branches."""
