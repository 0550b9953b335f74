"""Cohorts: real images, patient by patient, split into the roles ``train`` and ``holdout``.

``recipes`` (TOML) say how a source's files become images, ``readers`` read them, ``plan`` is what they share. ``draft``
says what would be prepared, ``build`` does it, ``journal`` lets it go on after an interruption, ``duplicates`` finds
shared pictures and ``leaks`` deals with them, ``private`` holds who is who. ``split`` draws roles and subsets by
subject, ``store`` reads and writes the folder, ``removal`` takes a patient out of it, ``compare`` looks for leaks
between folders of pictures, ``phantom`` makes a procedural cohort when there are no data.
"""
