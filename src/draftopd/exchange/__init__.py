"""The layouts in which drafters are published: read, write, lint. Nothing pickled is ever loaded."""
