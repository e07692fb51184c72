"""Helpers of the `tensorrt` target."""
