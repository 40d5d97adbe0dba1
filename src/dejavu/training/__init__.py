"""Predictors, thresholds, compensators and the search: from a model and text to an access plan."""
