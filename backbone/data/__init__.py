"""Images and text files, read the same way for every task."""
