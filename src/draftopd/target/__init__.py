"""The frozen language model: prefill, verify, replay, and what it lends to a drafter."""
