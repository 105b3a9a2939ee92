"""Advantage-Leftover-Lunch offline RL for language models, in JAX."""
