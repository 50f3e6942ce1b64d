"""Train drafters for speculative decoding."""
