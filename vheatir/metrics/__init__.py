"""Metrics of restored images: fidelity to the truth, the same in batches, and perceptual ones."""

PERCEPTUAL = ("lpips", "dists", "niqe")  # names that `vheatir.metrics.perceptual.Perceptual` takes
