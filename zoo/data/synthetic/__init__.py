"""What makes samples: scenes, sounds and sequences with known answers."""
