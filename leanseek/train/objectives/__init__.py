"""Pure losses: a model and a batch in, a loss and its metrics out."""
