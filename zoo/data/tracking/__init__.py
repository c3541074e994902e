"""Data sets: tracking."""
