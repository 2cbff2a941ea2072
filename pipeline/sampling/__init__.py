"""A loaded run, and drawing new images from it."""
