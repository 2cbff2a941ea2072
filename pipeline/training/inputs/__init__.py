"""What goes into a training: the images of a run, their codes, batches, and what a network begins with."""
