"""Importance scores, and the choice of units to prune over all layers together."""
