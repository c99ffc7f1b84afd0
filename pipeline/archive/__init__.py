"""A night's work: every suitable pair of a catalogue, fused where its product is missing or stale.

In: a catalogue of scenes, the settings of an archive. Out: published products, a record of what was done, left and refused.
Must not know: how one scene is fused (it is handed a function that does it).

    settings       what decides an archive
    built_from     what a product was made of, and what has changed since
    backlog        what is new, done, stale or refused
    cost           how long a scene will take
    dead_letters   scenes that failed, and why
    outcome        how the fusion of one scene ended
    locks night    one night per archive; the night itself
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
