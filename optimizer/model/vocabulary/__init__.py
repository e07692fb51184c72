"""Removes pieces from tokenizers: the choice of pieces, and the renumbering of all ids."""
