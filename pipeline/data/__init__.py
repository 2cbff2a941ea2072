"""Every way images come in, and code maps on disk."""
