"""Foundations: errors, the store of finished steps, progress, devices and cores."""
