"""A run as a page: one HTML file that shows what a model is, what limits it, and what to try."""
