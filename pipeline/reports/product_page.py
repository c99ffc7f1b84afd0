"""`report.html`, the report of one product: its quality, uncertainty and provenance on one page."""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.product_files import REPORT
from hyperfuse.pipeline.quality.assessment import Assessment, own_row
from hyperfuse.pipeline.quality.consistency import MAP_EDGE
from hyperfuse.pipeline.quality.standard_error import error_map
from hyperfuse.pipeline.reports.arrows import Arrows, displacement_arrows
from hyperfuse.pipeline.reports.color_maps import Map, color_map
from hyperfuse.pipeline.reports.html import Cell, Row, Table, figure, quantity_label, render
from hyperfuse.pipeline.reports.pictures import Composite, composites, job_spectra
from hyperfuse.pipeline.stage_times import stage_times

_AGREEMENT = (
    ("sam_deg", "spectral angle (deg)"),
    ("rmse", "RMSE"),
    ("bias", "bias"),
    ("r2", "R2"),
    ("pixels", "pixels compared"),
)
_REDUCED = (
    ("psnr_db", "PSNR (dB)"),
    ("sam_deg", "SAM (deg)"),
    ("ergas", "ERGAS"),
    ("ssim", "SSIM"),
    ("cc", "CC"),
    ("seconds", "s"),
)
_NO_REFERENCE = (
    ("d_lambda_k", "spectral distortion D_lambda^K, 0 is best"),
    ("d_s", "spatial distortion D_s, 0 is best"),
    ("hqnr", "HQNR, 1 is best"),
    ("windows", "windows that were scored"),
)
_VALIDITY = (
    ("valid", "valid samples"),
    ("invalid_pixels", "pixels that are invalid in at least one band"),
    ("filled_hsi", "missing pixels of the HSI, filled before fusion and invalid in the product"),
    ("filled_msi", "missing pixels of the MSI, likewise"),
    ("clipped_samples", "samples outside the range of the stored type"),
    ("implausible_samples", "samples outside the plausible range of reflectance"),
)
_CAUSES = {
    "displacement": "displacement of the {} (coarse px)",
    "psf": "width of the PSF over that which was told",
    "changed": "share of the pixels that changed between the dates",
    "stripes": "stripes of the {}, relative gain",
}
_CAUSE = (
    ("value", "found"),
    ("uncertainty", "standard error"),
    ("expected", "undisturbed"),
    ("limit", "significant beyond"),
    ("left", "left in the product"),
)
_SHARES = {"valid", "invalid_pixels", "filled_hsi", "filled_msi", "implausible_samples"}


@dataclass(frozen=True, kw_only=True)
class _ProductPage:
    """What `product_page.html` shows, from top to bottom."""

    title: str
    state: str
    warnings: Sequence[str]
    about: str
    composites: Sequence[Composite]
    arrows: Arrows | None
    uncertainty: str
    agreement: Table
    maps: Sequence[Map]
    reduced_about: str
    reduced: Table | None
    """None if nothing was measured at reduced resolution."""
    no_reference: Table | None
    seams_about: str
    causes_about: Sequence[str]
    """A sentence for every significant cause."""
    causes: Table
    gates: Sequence[tuple[str, bool]]
    """Sentences, and whether the gate was passed."""
    validity: Table
    provenance: Sequence[tuple[str, str]]
    conventions: Sequence[tuple[str, str]]
    config: str
    """JSON."""
    data: dict[str, Any]
    """What `product_page.js` reads."""


def write_product_page(job: StagedJob, assessment: Assessment, provenance: dict[str, Any]) -> Path:
    """Write `report.html` into the job's folder.

    Parameters
    ----------
    job : StagedJob
        Staged and fused.
    assessment : Assessment
    provenance : dict
        The record of `pipeline.products.provenance`.

    Returns
    -------
    Path
    """
    qa = assessment.record
    quantity = quantity_label(job.record.hsi.quantity, job.record.hsi.unit)
    page = _ProductPage(
        title=f"{job.name}: {job.record.hsi.name} fused with {job.record.msi.name}",
        state=qa["state"],
        warnings=qa["warnings"],
        about=_about(job, provenance),
        composites=composites(job),
        arrows=displacement_arrows(job.folder, job.grids.product),
        uncertainty=_uncertainty(qa["uncertainty"]),
        agreement=_agreement(qa["consistency"]),
        maps=_maps(job, assessment, quantity),
        reduced_about=_reduced_about(qa["reduced_resolution"]),
        reduced=_reduced(qa["reduced_resolution"]["rows"], own_row(job)),
        no_reference=None
        if qa["no_reference"] is None
        else _figures("no_reference", qa["no_reference"], _NO_REFERENCE),
        seams_about=_seams_about(qa["seams"]),
        causes_about=[cause["sentence"] for cause in qa["causes"] if cause["significant"]],
        causes=_causes(qa["causes"]),
        gates=[(gate["sentence"], gate["passed"]) for gate in qa["gates"]],
        validity=_figures("validity", qa["validity"], _VALIDITY, shares=_SHARES),
        provenance=_provenance(job, qa, provenance),
        conventions=list(qa["conventions"].items()),
        config=json.dumps(provenance["config"], indent=1),
        data={
            "qa": {key: qa[key] for key in ("consistency", "seams")},
            "spectra": {key: value for key, value in asdict(job_spectra(job)).items() if value is not None},
            "shape": list(job.grids.product.shape),
            "quantity": quantity,
        },
    )
    path = job.folder / REPORT
    write_atomic(path, render("product_page.html", page))
    return path


def _about(job: StagedJob, provenance: dict[str, Any]) -> str:
    facts, (height, width) = provenance["product"], job.grids.product.shape
    return (
        f"{provenance['method']['title']}; {height} x {width} pixels, {len(job.bands)} bands from "
        f"{job.bands.center_nm[0]:.0f} to {job.bands.center_nm[-1]:.0f} nm, ratio {job.grids.ratio}, {facts['crs'][:60]}."
    )


def _maps(job: StagedJob, assessment: Assessment, quantity: str) -> list[Map]:
    """Where the product disagrees with its inputs, and its standard errors; maps without a value are left out."""
    maps, errors, msi = assessment.maps, error_map(job, MAP_EDGE), job.record.msi
    msi_quantity = quantity_label(msi.quantity, msi.unit)
    shown = [
        color_map("Spectral angle between the degraded product and the HSI", maps.hsi_sam_deg, "deg"),
        color_map("Error of the degraded product, root mean square over bands", maps.hsi_rmse, quantity),
        color_map("Error of the product through the MSI's responses", maps.msi_rmse, msi_quantity),
        None
        if errors is None
        else color_map("Standard error of the product, root mean square over bands", errors, quantity),
    ]
    return [one for one in shown if one is not None]


def _agreement(consistency: dict[str, Any]) -> Table:
    titles = {"hsi": "degraded product and HSI", "msi": "product through the responses and MSI"}
    return Table(
        columns=[title for _, title in _AGREEMENT],
        rows=[
            Row(
                title=title,
                cells=[
                    figure(f"consistency.{role}.{key}", consistency[role] and consistency[role][key])
                    for key, _ in _AGREEMENT
                ],
            )
            for role, title in titles.items()
        ],
    )


def _uncertainty(uncertainty: dict[str, Any] | None) -> str:
    if uncertainty is None:
        return ""
    band = "The band around the product is 1.645 standard errors to either side, made to hold 90 % of the errors."
    if not uncertainty["calibrated"]:
        return f"{band} It is not calibrated, because {uncertainty['reason']}."
    worst, best = (100 * share for share in uncertainty["coverage_range"])
    return (
        f"{band} Calibrated at reduced resolution: fitted to three quadrants, it held {worst:.1f} to {best:.1f} % of the errors "
        f"in the fourth, {100 * uncertainty['coverage']:.1f} % over all four. {uncertainty['caveat']}"
    )


def _reduced_about(reduced: dict[str, Any]) -> str:
    if reduced["error"]:
        return f"Not measured: {reduced['error']}"
    y0, y1, x0, x1 = reduced["window_px"]
    return (
        f"Both inputs degraded by the ratio on {y1 - y0} x {x1 - x0} coarse pixels and fused; the hyperspectral input is the "
        "reference."
    )


def _reduced(rows: Sequence[dict[str, Any]], chosen_row: str) -> Table | None:
    if not rows:
        return None
    return Table(
        corner="method",
        columns=[title for _, title in _REDUCED],
        rows=[
            Row(
                title=row["method"],
                cells=() if row["error"] else _reduced_cells(index, row),
                error=row["error"] or "",
                chosen=row["method"] == chosen_row,
            )
            for index, row in enumerate(rows)
        ],
    )


def _reduced_cells(index: int, row: dict[str, Any]) -> list[Cell]:
    return [figure(f"reduced_resolution.rows.{index}.{key}", row.get(key)) for key, _ in _REDUCED]


def _figures(
    part: str, record: dict[str, Any], titles: Sequence[tuple[str, str]], *, shares: Container[str] = ()
) -> Table:
    """Some figures of a part of `qa.json`, one per row."""
    return Table(
        rows=[
            Row(title=title, cells=[figure(f"{part}.{key}", record[key], share=key in shares)]) for key, title in titles
        ]
    )


def _seams_about(seams: dict[str, Any] | None) -> str:
    if seams is None:
        return "The product is one tile: there are no borders."
    return (
        f"Lines between tiles: {seams['lines']}. The gradient across them differs by {100 * seams['score']:+.1f} % from that one "
        f"and two coarse pixels beside them; the scene's own texture varies it by {100 * seams['spread']:.1f} %."
    )


def _causes(causes: Sequence[dict[str, Any]]) -> Table:
    """What the pair told, one cause per row."""
    return Table(
        columns=[title for _, title in _CAUSE],
        rows=[
            Row(
                title=_CAUSES[cause["name"]].format(cause["detector"]),
                cells=[figure(f"causes.{index}.{key}", cause[key]) for key, _ in _CAUSE],
            )
            for index, cause in enumerate(causes)
        ],
    )


def _provenance(job: StagedJob, qa: dict[str, Any], provenance: dict[str, Any]) -> list[tuple[str, str]]:
    registration, sensors = job.staged.registration, job.observation
    tiles = job.ledger.records().values()
    rows = [
        (
            role,
            f"{scene.name} ({scene.sensor}, {scene.gsd_m:.4g} m, {scene.time or 'time unknown'}), SHA-256 {scene.sha256}",
        )
        for role, scene in (("hyperspectral input", job.record.hsi), ("multispectral input", job.record.msi))
    ]
    rows += [
        ("method", f"{provenance['method']['title']}; {provenance['method']['paper']}"),
        ("weights", str(provenance["method"]["weights_sha256"] or "none needed")),
        *([("learned residual", qa["residual"]["sentence"])] if qa["residual"] else []),
        ("registration", f"{registration.decision}: {registration.reason}"),
        ("observation", f"PSF {sensors.psf_sigma_px:.2f} px ({sensors.psf_origin}), responses ({sensors.srf_origin})"),
        ("radiometry", _harmony_about(qa["harmony"])),
        ("strict mode", _strict_about(qa["strict"])),
        ("software", ", ".join(f"{name} {value}" for name, value in provenance["software"].items())),
        ("computed on", f"{provenance['facility']['host']}, {', '.join(provenance['facility']['devices'])}"),
        ("run", f"{provenance['started']} to {provenance['ended']}"),
        ("fusing", f"{sum(tile.seconds for tile in tiles):.1f} s in {provenance['tiles']['finished']} tiles"),
        ("stages", ", ".join(f"{cost.stage} {cost.wall_s:.1f} s" for cost in stage_times(job.folder))),
        ("job", job.record.key),
    ]  # fmt: skip
    return rows


def _harmony_about(harmony: dict[str, Any] | None) -> str:
    return "not fitted" if harmony is None else harmony["mistake"] or harmony["reason"]


def _strict_about(strict: dict[str, Any] | None) -> str:
    if strict is None:
        return "off"
    if strict["over_noise"] is None:
        return "on; no pixel of the product could be compared with the hyperspectral input"
    corrected = sum(value is not None for value in strict["lambdas"])
    return (
        f"on; {corrected} of {len(strict['lambdas'])} bands were corrected, the worst band's disagreement with the "
        f"hyperspectral input is {strict['over_noise']:.2f} of its noise"
    )
