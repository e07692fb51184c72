"""The command `prumux-bench`."""
