"""Training of networks, native and universal: Wald's protocol on scenes, patches, losses, a loop that can be killed.

In: cubes, pairs or spectral libraries, and the settings of a training. Out: a weight file with its card.
Must not know: jobs and products.

    settings       what decides a training
    generated      scenes made from structure and spectra
    pairs          scenes as simulated pairs; which are learnt from, and which are held out
    patches        patches of them, each a function of its number alone
    planes         the same for universal networks: planes of the estimate, and what it is short of
    distributed    several processes, a device for each, that learn as one
    step           one step: a network by itself, or a student with its teacher
    stopping       signals that wait for the end of a step
    checkpoint     where a training is, on disk: no pickle, whole or not at all
    curves         the curves as CSV, and for TensorBoard
    run            the steps in order: open, learn, validate, keep the best
    adapt          a universal network fitted to one scene, where blocks that were held back agree

A module uses only those above it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
