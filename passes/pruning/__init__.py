"""Importance scores and the joint choice of what to prune."""
