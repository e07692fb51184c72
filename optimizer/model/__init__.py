"""The model: sizes, weights, masks, forward pass, checkpoints and artifact folders."""
