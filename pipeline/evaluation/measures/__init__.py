"""What can be measured of images and of sets of them: mathematics, each figure with its standard error."""
