"""Blocks that two or more papers use. Import them from their modules."""
