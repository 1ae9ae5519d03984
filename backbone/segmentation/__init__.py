"""Semantic segmentation: UPerNet on the backbones of this package."""
