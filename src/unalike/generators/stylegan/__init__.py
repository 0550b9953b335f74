"""StyleGAN, written from Karras et al. (2019; 2020, "Analyzing and Improving"; 2020, "Limited Data"), in plain PyTorch.

``settings`` has every knob and imports no torch; ``layers`` holds the operations, ``network`` the two networks;
``losses`` what they are trained by, ``augment`` what the discriminator sees, ``train`` the updates; ``model`` is what
is kept of a run, ``sample`` and ``latents`` draw from it.
"""
