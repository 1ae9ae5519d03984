"""The backbones, made by name."""
