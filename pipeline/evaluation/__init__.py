"""How good a model is, and how probable images are under it."""
