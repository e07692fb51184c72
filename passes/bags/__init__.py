"""How the pass `bag` fits the vectors of pieces and pairs."""
