"""Images as a file of entropy-coded codes, and back."""
