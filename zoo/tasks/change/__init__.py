"""Tasks: change detection."""
