"""Candidates built ahead of the search by other processes or machines (Ray)."""
