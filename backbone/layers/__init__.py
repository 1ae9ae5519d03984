"""Layers of the backbones."""
