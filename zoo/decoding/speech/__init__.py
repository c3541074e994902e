"""From encoded sound to text."""
