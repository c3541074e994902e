"""One file a paper: ``zoo/models/<family>/<system>.py``."""
