"""The command line: one file per command, and `app`, which finds and runs them."""
