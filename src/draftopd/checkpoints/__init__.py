"""Drafters on disk: our own checkpoints, and the layouts in which others publish. Nothing pickled is ever loaded."""
