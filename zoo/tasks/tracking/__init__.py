"""Tasks: tracking."""
