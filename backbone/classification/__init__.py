"""Image classification: readers, recipe and task."""
