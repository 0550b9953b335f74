"""Generators whose answer is known beforehand: one that cannot copy anybody and one that does nothing else.

An audit that flags the first or clears the second is wrong, whatever it says about a model under test.
"""
