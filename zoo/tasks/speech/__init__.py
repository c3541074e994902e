"""Tasks: speech."""
