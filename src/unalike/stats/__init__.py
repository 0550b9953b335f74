"""Intervals, subject-calibrated p-values, subject bootstrap. NumPy and SciPy only; nothing here knows of images."""
