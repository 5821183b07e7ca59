"""A model learns the protocol from demonstrations, before RL."""
