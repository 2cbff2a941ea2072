"""How maps are drawn, and what lies between two images, as pictures in a row or one after another."""
