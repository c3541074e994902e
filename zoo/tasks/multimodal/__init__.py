"""Tasks: multimodal models."""
