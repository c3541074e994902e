"""Tasks: dense prediction."""
