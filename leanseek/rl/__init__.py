"""Reasoning: rollouts with the engine, advantages, and GRPO over verifiable rewards."""
