"""Tasks: decoding language models."""
