"""Tasks: language models."""
