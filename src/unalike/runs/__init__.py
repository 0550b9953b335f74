"""Runs: the door to every generator. Train one into a run folder, draw samples from a run into a samples folder.

``train`` and ``sample`` hold the two public functions, ``families`` knows which modules belong to which kind of
generator; ``watch`` looks for copies while a generator is trained and ``guard`` while samples are drawn, both by the
audit's live index. Nothing is imported here, so that reading the settings for ``--help`` does not import torch.
"""
