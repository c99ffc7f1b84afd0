"""Training of networks, native and universal: Wald's protocol on scenes, patches, losses, a loop that can be killed.

    settings    what decides a training
    structure   what a fine image tells of where materials lie, and in which light
    materials   spectra for them, from libraries
    generated   scenes made of both
    grounds     scenes as simulated pairs; which are learnt from, and which are held out
    samples     patches of them, each a function of its number alone
    residuals   the same for universal networks: planes of the estimate, and what it is short of
    ranks       several processes, a device for each, that learn as one
    lessons     one step: a network by itself, or a student with its teacher
    state       where a training is, on disk: no pickle, whole or not at all
    logs        the curves as CSV, and for TensorBoard
    workflow    the steps in order: open, learn, validate, keep the best
    fitting     a universal network on one scene, step by step
    adapt       the same from scene to weights, where blocks that were held back agree

A module uses only those above it.
"""

from hyperfuse.pipeline.training.run import train
from hyperfuse.pipeline.training.settings import TrainConfig, load_training

__all__ = ["TrainConfig", "load_training", "train"]
