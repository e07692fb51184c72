"""The passes, one a file, named after the pass; helpers are in the folders."""
