"""Suite storage: reading, writing and checkpoints on the file system that is asked for."""
