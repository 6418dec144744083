"""From text and problems to batches of token ids."""
