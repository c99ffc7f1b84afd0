"""How good a product is: scores with and without a truth, standard errors, gates, and whether a learned residual helps.

In: a finished mosaic with its staged pair, or a fused image with its truth. Out: the content of `qa.json`, the gates that
were missed, a standard error per sample.
Must not know: formats and folders of products, pages.

    metrics accumulators      PSNR, SAM, ERGAS ... on whole images; the same as sums over blocks
    consistency               the product degraded, against both inputs; seams between tiles
    no_reference              D_lambda, D_s, HQNR
    trials                    methods against a truth, timed and weighed
    reduced_resolution job_trial   real pairs degraded by their ratio; a window of a job's own pair likewise
    rehearsal uncertainty standard_error reference_regression msi_detail   standard errors and their calibration
    residual_decision         a learned residual: applied or not
    assessment                all of it for one product, held against the limits
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
