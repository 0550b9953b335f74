"""Pixels in and out: pictures, volumes, geometry, exact sums, contact sheets."""
