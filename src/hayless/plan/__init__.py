"""Predictions: published tables computed live, and what a model will need and take before it runs. No torch."""
