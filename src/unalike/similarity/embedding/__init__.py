"""Learned spaces in which copies stay near although pixels changed: ``autoencoder`` and ``contrastive``."""
