"""What is kept of images once they are decoded."""
