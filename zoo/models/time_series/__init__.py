"""Baselines for time series."""
