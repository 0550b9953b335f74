"""How alike two images are. ``correlation``: Pearson correlation of all pairs, exact to the last bit."""
