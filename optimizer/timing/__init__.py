"""How fast a model is: interleaved timing and the measured cost table."""
