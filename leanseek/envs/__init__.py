"""Tasks with unlimited problems and exact checkers; one environment a file, no torch."""
