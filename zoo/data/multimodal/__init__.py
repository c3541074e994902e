"""Data sets: multimodal models."""
