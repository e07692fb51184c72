"""Running a result: `prumux.load`, sessions, grouping of mixed rows."""
