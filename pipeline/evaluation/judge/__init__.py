"""The judge: a small network, trained once on the training part of a data set, whose features compare images."""
