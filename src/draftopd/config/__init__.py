"""The check of a composed configuration, before anything is loaded or written."""
