"""The Triton model repository of a result."""
