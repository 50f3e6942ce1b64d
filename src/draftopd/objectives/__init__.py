"""Losses as functions of rows (supervised draft positions); they know torch and nothing of models."""
