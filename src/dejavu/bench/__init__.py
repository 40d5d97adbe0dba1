"""Measuring speed: tests, their timing, and the report."""
