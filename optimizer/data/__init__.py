"""Tables to rows, rows to tokens, tokens to batches."""
