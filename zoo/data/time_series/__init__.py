"""Data sets: time series."""
