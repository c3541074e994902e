"""Models of images and text."""
