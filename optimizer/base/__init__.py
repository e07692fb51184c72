"""Foundations: errors, the store of finished steps, progress, devices, cores."""
