"""What a model can do: attempts at problems, accuracy, bits per byte, acceptance, and the report."""
