"""Data sets: dense prediction."""
