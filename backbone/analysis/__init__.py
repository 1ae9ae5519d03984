"""Measurements of backbones."""
