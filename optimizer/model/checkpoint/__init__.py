"""The files of a given model: weights, tensor names, tokenizer and keys of the config."""
