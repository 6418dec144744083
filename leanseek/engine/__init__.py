"""The inference engine: requests in, tokens out, the same model object as training."""
