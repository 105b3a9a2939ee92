"""Batches of prompts of a few widths."""
