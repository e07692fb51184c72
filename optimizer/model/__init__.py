"""The model: sizes, weights, masks, the forward pass, checkpoints, artifact folders."""
