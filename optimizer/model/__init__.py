"""What a model is: sizes, weights, masks, the forward pass, checkpoints, artifact folders."""
