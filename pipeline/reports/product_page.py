"""The report of a product: one HTML file that needs nothing else, for whoever asks "is it true?"."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.product_files import REPORT
from hyperfuse.pipeline.job.records import InputRecord
from hyperfuse.pipeline.quality.assessment import Assessment, own_row
from hyperfuse.pipeline.quality.consistency import MAP_EDGE
from hyperfuse.pipeline.quality.standard_error import error_map
from hyperfuse.pipeline.reports.arrows import Arrows, displacement_arrows
from hyperfuse.pipeline.reports.html import cell, embedded, escaped, listed, render, table
from hyperfuse.pipeline.reports.pictures import Composite, Map, composites, disagreement, spectra

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
_BLIND = (
    ("d_lambda_k", "spectral distortion D_lambda^K, 0 is best"),
    ("d_s", "spatial distortion D_s, 0 is best"),
    ("hqnr", "HQNR, 1 is best"),
    ("windows", "windows that were looked at"),
)
_VALIDITY = (
    ("valid", "valid samples"),
    ("invalid_pixels", "pixels that are invalid in a band or more"),
    ("filled_hsi", "pixels of the HSI that were holes, filled before fusion and invalid in the product"),
    ("filled_msi", "pixels of the MSI that were holes, likewise"),
    ("clipped_samples", "samples outside the range of the stored type"),
    ("implausible_samples", "samples that are no reflectance"),
)
_SHARES = {"valid", "invalid_pixels", "filled_hsi", "filled_msi", "implausible_samples"}


def write_report(job: StagedJob, assessment: Assessment, provenance: dict[str, Any]) -> Path:
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
    quantity = _measured(job.record.hsi)
    data = {
        "qa": {key: qa[key] for key in ("consistency", "seams")},
        "spectra": spectra(job),
        "shape": list(job.grids.product.shape),
        "quantity": quantity,
    }
    found, arrows = composites(job), displacement_arrows(job.folder, job.grids.product)
    maps = [
        disagreement("Spectral angle between the degraded product and the HSI", assessment.maps.hsi_sam_deg, "deg"),
        disagreement("Error of the degraded product, root mean square over bands", assessment.maps.hsi_rmse, quantity),
        disagreement(
            "Error of the product through the MSI's responses", assessment.maps.msi_rmse, _measured(job.record.msi)
        ),
    ]
    errors = error_map(job, MAP_EDGE)
    if errors is not None:
        maps.append(disagreement("Standard error of the product, root mean square over bands", errors, quantity))
    warned = bool(qa["warnings"])
    parts = {
        "title": escaped(f"{job.name}: {job.record.hsi.name} fused with {job.record.msi.name}"),
        "state": escaped(qa["state"]),
        "state_class": "warned" if warned else "",
        "warnings": listed(qa["warnings"]),
        "about": escaped(_about(job, provenance)),
        "composite_buttons": "".join(f'<button type="button">{escaped(one.title)}</button>' for one in found),
        "swipes": "".join(_swipe(one, arrows) for one in found),
        "arrows_button": "" if arrows is None else '<button type="button" id="arrows">displacement</button>',
        "arrows_about": "" if arrows is None else f'<p class="about arrows">{escaped(arrows.about)}</p>',
        "uncertainty": escaped(_uncertainty(qa["uncertainty"])),
        "agreement": _agreement(qa["consistency"]),
        "maps": "".join(_map(one) for one in maps if one is not None),
        "reduced_about": escaped(_reduced_about(qa["reduced_resolution"])),
        "reduced": _reduced(qa["reduced_resolution"]["rows"], own_row(job)),
        "blind": _pairs(
            "no_reference", qa["no_reference"], _BLIND, empty="No window of the product is valid throughout."
        ),
        "seam_about": escaped(_seam_about(qa["seams"])),
        "gates": _gates(qa["gates"]),
        "validity": _pairs("validity", qa["validity"], _VALIDITY, shares=_SHARES),
        "provenance": table(("", ""), _provenance(job, qa, provenance)),
        "conventions": table(("", ""), ((key, text) for key, text in qa["conventions"].items())),
        "config": escaped(json.dumps(provenance["config"], indent=1)),
        "data": embedded(data),
    }
    path = job.folder / REPORT
    write_atomic(path, render("report.html", parts))
    return path


def _measured(scene: InputRecord) -> str:
    """What the samples of a scene are, with their unit."""
    return scene.quantity.replace("_", " ") + (f" ({scene.unit})" if scene.unit != "1" else "")


def _about(job: StagedJob, provenance: dict[str, Any]) -> str:
    facts, (height, width) = provenance["product"], job.grids.product.shape
    return (
        f"{provenance['method']['title']}; {height} x {width} pixels, {len(job.bands)} bands from "
        f"{job.bands.center_nm[0]:.0f} to {job.bands.center_nm[-1]:.0f} nm, ratio {job.grids.ratio}, {facts['crs'][:60]}."
    )


def _swipe(composite: Composite, arrows: Arrows | None) -> str:
    width, height = composite.size
    alt = escaped(composite.title)
    return (
        # A tall scene must fit a screen, so its width is what the height allows.
        f'<div class="swipe" hidden style="max-width: calc(80vh * {width} / {height})">'
        f'<img class="before" alt="Hyperspectral input, {alt}" width="{width}" height="{height}" style="height: auto" '
        f'src="{composite.before}">'
        f'<img class="after" alt="Product, {alt}" width="{width}" height="{height}" style="height: auto" src="{composite.after}">'
        f"{'' if arrows is None else arrows.svg}"
        '<span class="edge"></span><span class="tag" style="left: .4rem">before</span>'
        '<span class="tag" style="right: .4rem">after</span><span class="dot"></span></div>'
    )


def _map(one: Map) -> str:
    return (
        f'<figure><img alt="{escaped(one.title)}" src="{one.image}"><div class="scale"><span>0</span>'
        f'<i style="background: linear-gradient(to right, {", ".join(one.colors)})"></i>'
        f"<span>{one.high:.3g}</span></div><figcaption>{escaped(one.title)} ({escaped(one.unit)})</figcaption></figure>"
    )


def _agreement(consistency: dict[str, Any]) -> str:
    head = "".join(f'<th class="number">{escaped(title)}</th>' for _, title in _AGREEMENT)
    rows = []
    for role, title in (("hsi", "degraded product and HSI"), ("msi", "product through the responses and MSI")):
        found = consistency[role]
        cells = "".join(cell(f"consistency.{role}.{key}", found and found[key]) for key, _ in _AGREEMENT)
        rows.append(f"<tr><td>{title}</td>{cells}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _uncertainty(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    band = "The band around the product holds 90 % of the errors (1.645 standard errors)"
    if not found["calibrated"]:
        return f"{band} at a guess: nothing could be calibrated, because {found['reason']}."
    worst, best = (100 * share for share in found["coverage_range"])
    return (
        f"{band} by a calibration at reduced resolution, where {worst:.1f} to {best:.1f} % of the errors in each quadrant lay within "
        f"it by a fit to the three others, {100 * found['coverage']:.1f} % in all. {found['caveat']}"
    )


def _reduced_about(reduced: dict[str, Any]) -> str:
    if reduced["error"]:
        return f"Not measured: {reduced['error']}"
    y0, y1, x0, x1 = reduced["window_px"]
    return (
        f"Both inputs degraded by the ratio on {y1 - y0} x {x1 - x0} coarse pixels and fused; there the hyperspectral input is "
        "the truth."
    )


def _reduced(rows: list[dict[str, Any]], chosen_row: str) -> str:
    if not rows:
        return ""
    head = "".join(f'<th class="number">{escaped(title)}</th>' for _, title in _REDUCED)
    body = []
    for index, row in enumerate(rows):
        chosen = ' class="chosen"' if row["method"] == chosen_row else ""
        cells = "".join(cell(f"reduced_resolution.rows.{index}.{key}", row.get(key)) for key, _ in _REDUCED)
        if row["error"]:
            cells = f'<td colspan="{len(_REDUCED)}">{escaped(row["error"])}</td>'
        body.append(f"<tr{chosen}><td>{escaped(row['method'])}</td>{cells}</tr>")
    return f"<table><tr><th>method</th>{head}</tr>{''.join(body)}</table>"


def _pairs(
    part: str,
    found: dict[str, Any] | None,
    titles: Sequence[tuple[str, str]],
    *,
    shares: Iterable[str] = (),
    empty: str = "",
) -> str:
    if found is None:
        return f"<p>{escaped(empty)}</p>"
    rows = (
        f"<tr><td>{escaped(title)}</td>{cell(f'{part}.{key}', found[key], share=key in shares)}</tr>"
        for key, title in titles
    )
    return f"<table>{''.join(rows)}</table>"


def _seam_about(seams: dict[str, Any] | None) -> str:
    if seams is None:
        return "The product is one tile: there is no border."
    return (
        f"Lines between tiles: {seams['lines']}. Across them the gradient is {100 * seams['score']:+.1f} % of that one and two "
        f"coarse pixels beside them; scenery alone varies it by {100 * seams['spread']:.1f} %."
    )


def _gates(gates: list[dict[str, Any]]) -> str:
    if not gates:
        return "<p>No gates were asked for.</p>"
    rows = "".join(
        f"<tr><td>{escaped(gate['sentence'])}</td>"
        f'<td class="{"passed" if gate["passed"] else "missed"}">{"passed" if gate["passed"] else "missed"}</td></tr>'
        for gate in gates
    )
    return f"<table>{rows}</table>"


def _provenance(job: StagedJob, qa: dict[str, Any], provenance: dict[str, Any]) -> list[tuple[str, str]]:
    registration, seen = job.staged.registration, job.observation
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
        *([("learned residual", qa["learned"]["sentence"])] if qa["learned"] else []),
        ("registration", f"{registration.decision}: {registration.reason}"),
        ("observation", f"PSF {seen.psf_sigma_px:.2f} px ({seen.psf_origin}), responses ({seen.srf_origin})"),
        ("radiometry", _harmony_about(qa["harmony"])),
        ("strict mode", _strict_about(qa["strict"])),
        ("software", ", ".join(f"{name} {value}" for name, value in provenance["software"].items())),
        ("computed on", f"{provenance['facility']['host']}, {', '.join(provenance['facility']['devices'])}"),
        ("run", f"{provenance['started']} to {provenance['ended']}"),
        ("fusing", f"{sum(tile.seconds for tile in tiles):.1f} s in {provenance['tiles']['finished']} tiles"),
        ("judging", f"{qa['seconds']:.1f} s"),
        ("job", job.record.key),
    ]  # fmt: skip
    return rows


def _harmony_about(harmony: dict[str, Any] | None) -> str:
    return "not looked at" if harmony is None else harmony["mistake"] or harmony["reason"]


def _strict_about(strict: dict[str, Any] | None) -> str:
    if strict is None:
        return "off"
    if strict["over_noise"] is None:
        return "on; nothing of the product could be compared with the hyperspectral input"
    corrected = sum(value is not None for value in strict["lambdas"])
    return (
        f"on; {corrected} of {len(strict['lambdas'])} bands were corrected, the worst band's disagreement with the "
        f"hyperspectral input is {strict['over_noise']:.2f} of its noise"
    )
