"""Data sets: language models."""
