"""Co-registration: how the MSI lies on the HSI, measured, modelled, and decided on.

views      both images on the HSI's own pixels, block by block
search     whole-pixel moves, by correlation
tiepoints  what remains in each window, by the forward model
fitting    none, shift, affine or smooth field: what predicts the tie points best
decision   accept, warn, refuse
registration  all of it in order
"""

from pipeline.coregister.registration import Estimate, estimate, register

__all__ = ["Estimate", "estimate", "register"]
