"""Budgets, bounds and certificates: the loss of a candidate, with 95 % confidence."""
