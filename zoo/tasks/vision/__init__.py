"""Tasks: vision."""
