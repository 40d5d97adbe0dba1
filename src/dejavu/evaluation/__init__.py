"""Judging a model: how well it predicts text."""
