"""Tokenizers with fewer pieces: which pieces must stay, and every place that holds an id."""
