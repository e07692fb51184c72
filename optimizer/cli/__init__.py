"""The command line prumux-opt, its demo, and the command that writes report.html again."""
