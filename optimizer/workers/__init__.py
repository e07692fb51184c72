"""Workers (Ray): processes or machines that build candidates ahead of the search."""
