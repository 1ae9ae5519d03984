"""Folders of training runs: options, log, curves, checkpoints."""
