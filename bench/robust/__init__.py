"""The parts of `bench/robustness.py`."""
