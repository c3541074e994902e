"""Data sets: change detection."""
