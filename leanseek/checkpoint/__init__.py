"""The one checkpoint format: a Hugging Face folder, with the training state beside it."""
