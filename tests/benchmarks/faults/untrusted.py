"""Files that mean harm: E19 to E23, X26. Refused by what they hold, before they do anything."""

from __future__ import annotations

import json
import os
import pickle
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import rasterio
import torch

from tests.benchmarks.faults.commands import forked
from tests.benchmarks.faults.pairs import fused, image, pair, refused, write
from tests.benchmarks.faults.table import by_tests, experiment


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mknod, (self.path,)


@experiment(
    "E19",
    "weights cut, with NaN, without a card, for other bands",
    "exit 3 naming the file; no other method in their place",
)
def wrong_weights(folder: Path) -> str:
    from safetensors.torch import load_file, save_file

    from tests.pipeline.fusion.test_weights import weight_file

    hsi, msi = pair(folder)
    sound = weight_file(folder / "sound.safetensors", "csakd-student")
    data, state = sound.read_bytes(), load_file(sound)
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    name = next(key for key, value in state.items() if value.is_floating_point() and value.ndim)
    (folder / "cut.safetensors").write_bytes(data[: len(data) // 2])
    save_file(state | {name: torch.full_like(state[name], float("nan"))}, folder / "nan.safetensors", head)
    save_file(state | {name: torch.zeros(5)}, folder / "shape.safetensors", head)
    save_file({key: value for key, value in state.items() if key != name}, folder / "missing.safetensors", head)
    save_file(state, folder / "bare.safetensors")
    weight_file(folder / "bands.safetensors", "csakd-student", bands=31)
    kinds = ("cut", "nan", "shape", "missing", "bare", "bands")
    for kind in kinds:
        weights = folder / f"{kind}.safetensors"
        refused(folder, 3, weights.name, hsi, msi, "--set", "method=csakd-student", "--weights", str(weights))
    return f"exit 3: {', '.join(kinds)}"


@experiment(
    "E20",
    "weights that run code: pickle as .pt, .pt2 and .safetensors, `TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1`",
    "exit 3; the code never runs",
)
def weights_that_run_code(folder: Path) -> str:
    hsi, msi = pair(folder)
    marker = folder / "ran"
    harm = {"w.pt": folder / "w.pt", "w.safetensors": folder / "w.safetensors", "w.pt2": folder / "w.pt2"}
    torch.save({"weight": _Touch(str(marker))}, harm["w.pt"])
    harm["w.safetensors"].write_bytes(pickle.dumps(_Touch(str(marker))))
    with zipfile.ZipFile(harm["w.pt2"], "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Touch(str(marker))))
    for name, path in harm.items():
        for env in ({}, {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}):
            options = ("--set", "method=csakd-student", "--weights", str(path))
            refused(folder, 3, name, hsi, msi, *options, **env)
    for env in ({}, {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}):
        end = forked(
            ["import-weights", str(harm["w.pt"]), str(folder / "o.safetensors"), "--network", "csakd-student"], **env
        )
        assert end.code in {2, 3}, end.err[-1500:]
    assert not marker.exists(), "code of a weight file was run"
    return "exit 3 seven times and more, marker never made"


by_tests("E21", "zip: names that leave it, links, duplicates, a bomb, too many entries", "exit 3 before unpacking, entry named",
    "catalogs/formats/test_packages.py",
)  # fmt: skip
by_tests("E22", "XML: entities, many laughs, 51 MB, a million elements deep; JSON likewise; HDF5 links", "exit 3, nothing of the file told",
    "catalogs/test_hostile.py",
)  # fmt: skip


@experiment(
    "E23", "headers that declare 300,000 x 300,000 x 200 px, 70,000 bands", "exit 3 or 6 from the header, within 5 s"
)
def absurd_headers(folder: Path) -> str:
    _, msi = pair(folder)
    true = image("hsi")
    seen = []
    for name, (edge, bands) in {"large": (300_000, 200), "many": (4, 60_000)}.items():
        path = folder / "in" / f"{name}.tif"
        with rasterio.open(
            path, "w", driver="GTiff", width=edge, height=edge, count=bands, dtype="int16", crs=true.crs, transform=true.transform,
            tiled=True, blockxsize=16384 if edge > 9999 else 16, blockysize=16384 if edge > 9999 else 16, sparse_ok=True, bigtiff="yes",
            interleave="pixel" if edge < 9999 else "band",
        ) as file:  # fmt: skip
            if edge < 9999:
                file.write(np.zeros((1, 4, 4), np.int16), indexes=[1])
        nm = ",".join(f"{400 + 2000 * i / bands:.4f}" for i in range(bands))
        table = folder / "nm.txt"
        table.write_text("center_nm\n" + nm.replace(",", "\n"))
        end = fused(folder, path, msi, "--set", f"hsi.wavelengths={table}", "--set", "hsi.quantity=reflectance")
        assert end.code in {3, 6}, f"exit {end.code}: {end.err[-1500:]}"
        assert end.sentence
        assert end.seconds < 15, f"{name}: {end.seconds:.0f} s"
        seen.append(f"{name} exit {end.code}")
    return "; ".join(seen)


@experiment(
    "X26",
    "a `.tif` that is a VRT to a local file and to `http://127.0.0.1`; addresses `/vsicurl/`, `file:///etc/passwd`",
    "exit 3; nothing of the file shown, nobody connects",
)
def reaches_elsewhere(folder: Path) -> str:
    _, msi = pair(folder)
    asked: list[str] = []

    class Listening(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815 (the name that the library looks for)

        def log_message(self, *_: object) -> None:
            """Not on the terminal."""

    with HTTPServer(("127.0.0.1", 0), Listening) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/x.tif"
        secret = write(folder / "in" / "secret.tif", "hsi")
        for name, source in (("local", str(secret)), ("net", f"/vsicurl/{url}")):
            (folder / "in" / f"{name}.tif").write_text(
                f'<VRTDataset rasterXSize="48" rasterYSize="48"><VRTRasterBand dataType="Int16" band="1"><SimpleSource>'
                f"<SourceFilename>{source}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
            )
            refused(folder, 3, f"{name}.tif: is a GDAL virtual raster", folder / "in" / f"{name}.tif", msi)
        for address in (f"/vsicurl/{url}", "file:///etc/passwd", f"vrt://{secret}", url):
            end = fused(folder, address, msi)
            assert end.code in {2, 3}, f"{address}: exit {end.code}: {end.err[-800:]}"
            assert "root:" not in end.err
        server.shutdown()
    assert not asked, f"asked for {asked}"
    return "exit 3 six times, no connection"


by_tests("X26b", "STAC items that name files elsewhere, private addresses, links out of a catalogue", "refused",
    "catalogs/stac/test_trusted.py",
)  # fmt: skip
