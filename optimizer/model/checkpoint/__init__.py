"""The files of a given model: weights, tensor names, tokenizer, keys of the config."""
