"""Why a classifier decided as it did, and why a sample was flagged: heat maps with numbers, and evidence sheets.

Nothing is imported here, so that reading settings for ``--help`` does not import torch.
"""
