"""How the two sensors see one scene: PSF of the HSI, spectral responses of the MSI, radiometry; and pairs made to measure.

In: bands of both sensors, samples of a registered pair, or a cube whose truth is known. Out: the observation model and how
far it is from holding, the gains that bring the MSI to the HSI, simulated pairs.
Must not know: where the displacement came from, jobs, methods.

    psf psf_overlap   the Gaussian PSF on fine pixels; H H^T of it
    sample            blocks of a pair on which the model is tested
    sensor_model      what the tables of the sensors tell, and its misfit
    blind             PSF and SRF measured on the pair
    radiometry harmonize   a robust line per MSI band; what of it is taken out before fusion
    protocol simulate      a pair made from a cube, for evaluation and training
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
