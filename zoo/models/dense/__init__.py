"""Dense prediction: segmentation, counting, inpainting, super-resolution, depth, many tasks."""
