"""Auto-PruMUX: presets, bisection, acquisition, progressive pruning, certificates."""
