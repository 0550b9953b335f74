"""Cohorts: real images, patient by patient, split into the roles ``train`` and ``holdout``.

``store`` reads and writes the folder, ``recipes`` say how a source becomes images, ``build`` runs a recipe,
``split`` draws roles and subsets by subject, ``phantom`` makes a procedural cohort when there are no data.
"""
