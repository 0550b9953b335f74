"""Denoising diffusion (Ho, Jain and Abbeel 2020) on the networks and schedulers of Hugging Face diffusers.

``settings`` has every knob and imports no torch; ``network`` builds the U-Net and the noise schedule;
``train`` is Algorithm 1 of the paper; ``sample`` is Algorithm 2, or its deterministic variant DDIM.
"""
