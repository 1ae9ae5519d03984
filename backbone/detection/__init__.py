"""Object detection: Faster and Mask R-CNN on the backbones of this package."""
