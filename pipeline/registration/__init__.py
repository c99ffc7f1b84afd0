"""Co-registration: how the MSI lies on the HSI, measured, modelled, and decided on.

    views         both images on the HSI's own pixels, block by block
    search        whole-pixel moves, by correlation
    tiepoints     what remains in each window, by the forward model
    response      what an MSI band sees of the HSI's spectrum, learned
    fitting       none, shift, affine or smooth field: what predicts the tie points best
    dense         a field from every pixel
    decision      which tie points count; accept, warn, refuse
    blocks        all of that for the blocks of a scene, here or on workers
    registration  the steps in order
    report alone  table and figure; the command

A module uses only those above it.
"""

from hyperfuse.pipeline.registration.estimate import Estimate, estimate, register

__all__ = ["Estimate", "estimate", "register"]
