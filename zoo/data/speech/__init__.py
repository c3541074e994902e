"""Data sets: speech."""
