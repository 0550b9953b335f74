"""Textual inversion of Stable Diffusion (Gal et al. 2023; de Wilde et al. 2023): a concept learned as a few vectors.

``settings`` has every knob and imports no torch; ``base`` opens the frozen model, ``tiny`` makes a small one;
``embedding`` reads and writes what is learned; ``prompts`` composes concepts; ``pixels`` maps channels to colours;
``train`` learns, ``sample`` draws.
"""
