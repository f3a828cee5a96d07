"""One paper, one file, named after its method. A new file here is a new method."""
