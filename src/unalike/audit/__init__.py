"""Was anyone copied? Search all pairs, calibrate on held-out subjects, measure the power, say it in words.

``sets`` finds who plays which role, ``search`` compares, ``calibrate`` turns similarities into p-values, ``power``
plants copies to see how many are caught, ``exposure`` counts per patient, ``verdict`` says what it means;
``run`` is the whole of it.
"""
