"""Acceptance, speed and their intervals; tables, plots and comparisons of them."""
