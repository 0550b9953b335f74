"""How well a set of synthetic images resembles the real ones as a set; nothing here asks who was copied.

``features`` is what turns images into vectors (``own``: the cohort's; ``pretrained``: networks of others); ``frechet``,
``kernel``, ``manifold``, ``inception_score`` and ``variety`` compare sets; ``score`` does all of it.
"""
