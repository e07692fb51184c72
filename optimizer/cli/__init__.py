"""The command line of prumux-opt, and the demo."""
