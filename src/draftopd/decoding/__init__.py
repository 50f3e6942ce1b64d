"""Draft, verify, accept, repeat: rollouts, their redrafts along stored texts, and what they cost."""
