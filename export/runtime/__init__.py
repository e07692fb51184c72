"""Run a result: `prumux.load`, engines, and the grouping of multiplexed rows."""
