"""VHeatIR in other people's tools; each module needs that tool, and nothing else here imports it."""
