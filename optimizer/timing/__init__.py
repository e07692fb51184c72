"""The speed of a model: interleaved timing and the measured cost table."""
