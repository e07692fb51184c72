"""Budgets, confidence bounds and certificates of a candidate's loss."""
