"""Measure predictions: metrics, curves, segments, collisions, and differences between models."""
