"""What a run costs: hardware figures, energy meters, the ledger and the model card."""
