"""Files of a given model: weights, names, tokenizer, config."""
