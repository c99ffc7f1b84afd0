"""How a product came to be, in the two forms that other tools read: W3C PROV and RO-Crate.

Both say again what `provenance.json` says: `prov.json` is a PROV-JSON document of entities, activities and agents,
`ro-crate-metadata.json` makes the product folder a Process Run Crate. The checksums of the product's files are in its
manifest, to which the crate points.

References
----------
Huynh, Jewell, Sezavar Keshavarz, Michaelides, Yang & Moreau (2013), The PROV-JSON Serialization, W3C Member Submission.
Soiland-Reyes et al. (2022), Packaging research artefacts with RO-Crate, Data Science 5(2), doi:10.3233/DS-210053.
Leo et al. (2024), Recording provenance of workflow runs with RO-Crate, PLoS ONE 19(9), doi:10.1371/journal.pone.0309210.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hyperfuse.pipeline.products.draft import Asset
from hyperfuse.pipeline.products.records import Provenance, SceneFacts
from hyperfuse.pipeline.quality.records import QualitySummary

_PREFIXES = {"hf": "urn:hyperfuse:", "sha256": "urn:sha256:"}
_CRATE = "ro-crate-metadata.json"
_CRATE_VERSION = "https://w3id.org/ro/crate/1.1"
_PROFILE, _PROFILE_VERSION = "https://w3id.org/ro/wfrun/process/0.5", "0.5"


def address(uri: str) -> str:
    """An input's address as a URI: paths of this machine become `file:` ones."""
    scheme = uri.split(":", 1)[0]
    known = "://" in uri or scheme in ("synthetic", "array")
    return quote(uri, safe=":/?&=%#,@+") if known else Path(uri).absolute().as_uri()


def prov_document(record: Provenance) -> dict[str, Any]:
    """A provenance record as PROV-JSON.

    Parameters
    ----------
    record : Provenance
    """
    key, method, weights = record.job_key, record.method, record.method.weights_sha256
    product, plan, registration, fusion = (f"hf:{what}/{key}" for what in ("product", "plan", "registration", "fusion"))
    software, host = (
        f"hf:software/{quote(record.software['code_version'])}",
        f"hf:host/{quote(record.facility.host)}",
    )
    inputs = {role: f"sha256:{scene.sha256}" for role, scene in record.inputs.items()}
    entities = {inputs[role]: _scene(role, scene) for role, scene in record.inputs.items()}
    entities[plan] = {
        "prov:type": _qualified("prov:Plan"),
        "prov:label": "settings of the run",
        "prov:value": json.dumps(record.config, sort_keys=True),
    }
    entities[product] = {
        "prov:type": _qualified("hf:Product"),
        "prov:label": record.product.name,
        "hf:valid_fraction": record.product.valid_fraction,
        **_stated(record.quality),
    }
    used: list[tuple[str, str, str]] = [
        (activity, inputs[role], role) for activity in (registration, fusion) for role in inputs
    ]
    if weights is not None:
        entities[f"sha256:{weights}"] = {
            "prov:type": _qualified("hf:Weights"),
            "prov:label": f"weights of {method.name}",
        }
        used.append((fusion, f"sha256:{weights}", "weights"))
    told = record.registration
    return {
        "prefix": _PREFIXES,
        "entity": entities,
        "activity": {
            registration: {"prov:label": "registration", "hf:decision": told.decision, "hf:reason": told.reason},
            fusion: {
                "prov:startTime": record.started,
                "prov:endTime": record.ended,
                "prov:label": method.title,
                "hf:method": method.name,
                "hf:paper": method.paper,
                "hf:tiles": record.tiles.finished,
            },
        },
        "agent": {
            software: {
                "prov:type": _qualified("prov:SoftwareAgent"),
                "prov:label": "HyperFuse",
                **{f"hf:{name}": str(version) for name, version in record.software.items()},
            },
            host: {
                "prov:label": record.facility.host,
                "hf:platform": record.facility.platform,
                "hf:devices": ", ".join(record.facility.devices or []),
            },
        },
        "used": {
            f"_:used{k}": {"prov:activity": by, "prov:entity": what, "prov:role": role}
            for k, (by, what, role) in enumerate(used)
        },
        "wasInformedBy": {"_:informed": {"prov:informed": fusion, "prov:informant": registration}},
        "wasGeneratedBy": {"_:generated": {"prov:entity": product, "prov:activity": fusion, "prov:time": record.ended}},
        "wasDerivedFrom": {
            f"_:derived{k}": {"prov:generatedEntity": product, "prov:usedEntity": scene, "prov:activity": fusion}
            for k, scene in enumerate(dict.fromkeys(inputs.values()))
        },
        "wasAssociatedWith": {
            "_:associated": {"prov:activity": fusion, "prov:agent": software, "prov:plan": plan},
            "_:registered": {"prov:activity": registration, "prov:agent": software, "prov:plan": plan},
        },
        "actedOnBehalfOf": {"_:ran": {"prov:delegate": software, "prov:responsible": host, "prov:activity": fusion}},
    }  # fmt: skip


def crate(record: Provenance, assets: Sequence[Asset], *, published: str, license_id: str) -> dict[str, Any]:
    """The metadata that make a product folder a Process Run Crate.

    Parameters
    ----------
    record : Provenance
    assets : sequence of Asset
        Files and folders of the product.
    published : str
        RFC 3339 time.
    license_id : str
        SPDX identifier, or `other`.
    """
    method, facts, scenes = record.method, record.product, record.inputs.values()
    parts = [_part(asset) for asset in assets]
    inputs = list({scene.sha256: _input(scene) for scene in scenes}.values())
    names = " and ".join(scene.name for scene in scenes)
    graph: list[dict[str, Any]] = [
        {
            "@id": _CRATE,
            "@type": "CreativeWork",
            "conformsTo": {"@id": _CRATE_VERSION},
            "about": {"@id": "./"},
        },
        {
            "@id": "./",
            "@type": "Dataset",
            "name": facts.name,
            "description": f"{names}, fused by {method.title}",
            "datePublished": published,
            "license": license_id,
            "identifier": f"urn:hyperfuse:product/{record.job_key}",
            "conformsTo": {"@id": _PROFILE},
            "hasPart": _ids(parts),
            "mentions": {"@id": "#run"},
        },
        {"@id": _PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": _PROFILE_VERSION},
        {
            "@id": "#run",
            "@type": "CreateAction",
            "name": f"Fusion of {names}",
            "description": method.paper,
            "instrument": {"@id": "#hyperfuse"},
            "object": _ids([*inputs, {"@id": "#settings"}]),
            "result": _ids([part for part, asset in zip(parts, assets, strict=True) if "data" in asset.roles]),
            "startTime": record.started,
            "endTime": record.ended,
            "actionStatus": {"@id": "http://schema.org/CompletedActionStatus"},
        },
        {
            "@id": "#hyperfuse",
            "@type": "SoftwareApplication",
            "name": "HyperFuse",
            "softwareVersion": record.software["code_version"],
            "softwareRequirements": [f"{name} {value}" for name, value in record.software.items() if name != "code_version"],
        },
        {
            "@id": "#settings",
            "@type": "PropertyValue",
            "name": "settings of the run",
            "value": json.dumps(record.config, sort_keys=True),
        },
    ]  # fmt: skip
    return {"@context": f"{_CRATE_VERSION}/context", "@graph": graph + parts + inputs}


def _scene(role: str, scene: SceneFacts) -> dict[str, Any]:
    return {
        "prov:type": _qualified("hf:Scene"),
        "prov:label": scene.name,
        "prov:location": {"$": address(scene.uri), "type": "xsd:anyURI"},
        "hf:role": role,
        "hf:sensor": scene.sensor,
    }


def _qualified(name: str) -> dict[str, str]:
    return {"$": name, "type": "prov:QUALIFIED_NAME"}


def _stated(quality: QualitySummary | None) -> dict[str, Any]:
    return {} if quality is None else {"hf:state": quality.state}


def _part(asset: Asset) -> dict[str, Any]:
    """A file or folder of the product."""
    folder = asset.is_folder
    return {
        "@id": quote(asset.href) + ("/" if folder else ""),
        "@type": "Dataset" if folder else "File",
        "name": asset.title,
        "encodingFormat": asset.media_type,
    }


def _input(scene: SceneFacts) -> dict[str, Any]:
    """An input, by its content: the same scene is the same thing wherever it lay."""
    return {
        "@id": f"urn:sha256:{scene.sha256}",
        "@type": "CreativeWork",
        "name": scene.name,
        "contentUrl": address(scene.uri),
        "identifier": f"sha256:{scene.sha256}",
    }


def _ids(entities: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    return [{"@id": entity["@id"]} for entity in entities]
