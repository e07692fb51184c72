"""The core of prumux: it imports nothing of `prumux.passes` or `prumux.export`."""
