"""Generators: models that learn a cohort's ``train`` images and draw synthetic ones.

``runs`` is the door: `runs.train_generator` writes a run folder, `runs.draw_samples` a samples folder. The
families are ``controls.gaussian`` (can copy nobody), ``controls.memorizer`` (copies everybody) and
``diffusion``; they share leaves (``data``, ``settings``, ``checkpoints``), not a framework. Nothing is
imported here, so that reading the settings of a family for ``--help`` does not import torch.
"""
