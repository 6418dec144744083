"""Operators: each file states what an op computes and holds its readable torch reference."""
