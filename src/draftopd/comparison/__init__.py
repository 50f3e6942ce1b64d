"""Runs side by side, whatever they are given as: a table, paired differences, figures, a page."""
