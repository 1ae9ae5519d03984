"""What `vheatir bench` can measure and its defaults; the command line reads them without loading torch."""

# Name -> module with the function of that name, what it measures, and what it can be compared with.
BENCHMARKS = {
    "hco": ("vheatir.bench.operator", "the heat conduction operator", ("published", "none")),
    "block": ("vheatir.bench.operator", "one heat block", ("published", "none")),
    "model": ("vheatir.bench.classifier", "the classifier vHeat", ("published", "swin", "none")),
    "restore": ("vheatir.bench.restoration", "the restoration network", ("swinir", "none")),
}
DTYPES = ("float64", "float32", "bfloat16", "float16")
DECAYS = ("network", "uniform")
SHAPES = (  # (B, H, W, C): stages of a classifier, and maps of restoration networks
    (8, 56, 56, 96),
    (8, 28, 28, 192),
    (8, 14, 14, 384),
    (8, 7, 7, 768),
    (1, 128, 128, 64),
    (1, 256, 256, 48),
    (1, 512, 512, 48),
    (1, 481, 321, 48),
)
BLOCKS = (
    (1, 56, 56, 96),
    (1, 28, 28, 192),
    (1, 14, 14, 384),
    (1, 7, 7, 768),
    (1, 128, 128, 96),
    (1, 256, 256, 96),
)
STAGE_SIDE = 32  # pixels; sides of the classifier's images are multiples of it
SIDES = (224, 512, 1024)  # pixels of square images for the classifier
IMAGES = ((256, 256), (480, 320))  # (H, W) in pixels for the restoration network
DEPTHS = (6, 6, 6, 6)  # blocks of each group of the restoration network
