"""Files, locks, timing and metadata, for all commands."""
