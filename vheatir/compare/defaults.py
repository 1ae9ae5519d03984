"""Defaults of `vheatir compare`, which the command line reads without loading torch."""

CROP_SIZE = 96  # pixels, side of a crop that is chosen by itself
