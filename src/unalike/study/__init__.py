"""Whole studies: many cohorts, generators and measures from one command. So far: the demo."""
