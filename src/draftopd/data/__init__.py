"""Prompts, and the texts that the target has written for them."""
