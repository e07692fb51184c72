"""What labels mean: predictions, metrics, losses and importance of each kind of task."""
