"""What limits a model: the figures that are looked at, and the rules over them."""
