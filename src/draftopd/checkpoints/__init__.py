"""Drafters on disk: our own checkpoints, and the layouts of others. Nothing pickled is ever loaded."""
