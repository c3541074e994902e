"""Tasks: time series."""
