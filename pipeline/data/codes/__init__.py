"""Code maps, in memory and on disk."""
