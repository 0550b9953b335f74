"""How well a set of synthetic images resembles the real ones as a set; nothing here asks who was copied.

``features`` turns images into vectors by the cohort's own autoencoder and by bands of spatial
frequency, ``frechet`` compares two sets of vectors.
"""
