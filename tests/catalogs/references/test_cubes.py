"""Reference cubes: MATLAB files of both formats give the same cube, whatever their axes, and nothing of them is run."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.signal import absorbed
from hyperfuse.catalogs.references.cubes import CubeSource, band_numbers, open_cube
from tests.synthetic import SMALL, scene, whole

NM = np.array([450.0, 900.0, 550.0, 1400.0, 1650.0, 350.0])  # not sorted; 1400 is water vapor, 350 too short
CUBE = np.random.default_rng(0).uniform(0.1, 0.6, (6, 4, 5)).astype(np.float32)  # band, y, x


def save(path, level="5", **arrays):
    """A MATLAB file whose arrays have the axes as given."""
    if level == "5":
        savemat(path, arrays)
        return str(path)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in arrays.items():
            file[name] = np.asarray(values).T  # column-major, as MATLAB stores
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return str(path)


@pytest.mark.parametrize("level", ["5", "7.3"])
@pytest.mark.parametrize("axes", ["yxb", "ybx", "xyb", "xby", "byx", "bxy"])
def test_axes_and_formats_give_one_cube(tmp_path, level, axes):
    array = CUBE.transpose(["byx".index(axis) for axis in axes])
    cube = open_cube(CubeSource(uri=save(tmp_path / "a.mat", level, cube=array, wavelengths=NM[:, None]), axes=axes))
    order = np.argsort(NM)
    np.testing.assert_array_equal(cube.bands.center_nm, NM[order])
    np.testing.assert_array_equal(cube.values, CUBE[order])
    np.testing.assert_array_equal(cube.bands.good, [False, True, True, True, False, True])


@pytest.mark.parametrize("axes", ["b(xy)", "b(yx)", "(xy)b", "(yx)b"])
def test_matrix_of_spectra(tmp_path, axes):
    """Pixels column by column or row by row, spectra in rows or columns."""
    matrix = (CUBE if "yx" in axes else CUBE.swapaxes(1, 2)).reshape(6, -1)
    uri = save(tmp_path / "a.mat", Y=matrix if axes.startswith("b") else matrix.T, wavelengths=NM)
    cube = open_cube(CubeSource(uri=uri, variable="Y", axes=axes, rows=4))
    np.testing.assert_array_equal(cube.values, CUBE[np.argsort(NM)])
    with pytest.raises(InputRejected, match="20 pixels are no image"):
        open_cube(CubeSource(uri=uri, variable="Y", axes=axes))
    with pytest.raises(InputRejected, match="axes are given as one of"):
        open_cube(CubeSource(uri=uri, variable="Y"))


def test_wavelengths_of_the_user(tmp_path):
    """A table of more rows than the file has bands, of which the file's bands are named."""
    table = tmp_path / "bands.csv"
    table.write_text("center_nm,fwhm_nm,good\n100,1,1\n" + "".join(f"{nm},10,{nm != 900.0:d}\n" for nm in NM))
    uri = save(tmp_path / "a.mat", cube=CUBE.transpose(1, 2, 0))
    cube = open_cube(CubeSource(uri=uri, wavelengths=str(table), table_rows="2-4,5,6-7", absorption=False))
    assert set(cube.bands.fwhm_nm) == {10.0}
    assert cube.bands.center_nm[~cube.bands.good].tolist() == [900.0]
    listed = ",".join(f"{nm / 1e3}" for nm in NM)
    np.testing.assert_allclose(open_cube(CubeSource(uri=uri, wavelengths=listed)).bands.center_nm, np.sort(NM))
    with pytest.raises(InputRejected, match=r"has 6 bands, but .* gives 7 wavelengths"):
        open_cube(CubeSource(uri=uri, wavelengths=str(table)))
    with pytest.raises(InputRejected, match="--wavelengths"):
        open_cube(CubeSource(uri=uri))


def test_bands_without_signal(tmp_path):
    dead = CUBE.copy()
    dead[2] = 0.25
    uri = save(tmp_path / "a.mat", cube=dead.transpose(1, 2, 0), wavelengths=NM)
    cube = open_cube(CubeSource(uri=uri, bad="1", absorption=False))
    assert cube.bands.center_nm[~cube.bands.good].tolist() == [450.0, 550.0]
    with pytest.raises(InputRejected, match="none of its 6 bands is good"):
        open_cube(CubeSource(uri=uri, bad="1-6"))


def test_a_wrong_variable_is_told_in_one_sentence(tmp_path):
    uri = save(tmp_path / "a.mat", cube=CUBE, other=CUBE[:2], text="x", record={"field": 1.0}, wavelengths=NM)
    with pytest.raises(InputRejected, match=r"no array 'nope'.*cube 6x4x5, other 2x4x5, wavelengths 1x6") as told:
        open_cube(CubeSource(uri=uri, variable="nope"))
    assert "record" not in str(told.value)
    assert "\n" not in str(told.value)
    with pytest.raises(InputRejected, match="2 arrays of three axes, expected one"):
        open_cube(CubeSource(uri=uri))


def test_links_out_of_the_file_are_refused(tmp_path):
    path = tmp_path / "a.mat"
    save(path, "7.3", wavelengths=NM)
    with h5py.File(path, "r+") as file:
        file["cube"] = h5py.ExternalLink("/etc/other.h5", "/cube")
    with pytest.raises(InputRejected, match="link to another file"):
        open_cube(CubeSource(uri=str(path)))


def test_absurd_sizes_are_refused_unread(tmp_path):
    path = tmp_path / "a.mat"
    save(path, "7.3", wavelengths=NM)
    with h5py.File(path, "r+") as file:
        file.create_dataset("cube", shape=(6, 200_000, 200_000), dtype="f4", chunks=(1, 1024, 1024))
    with pytest.raises(InputRejected, match="samples, expected at most"):
        open_cube(CubeSource(uri=str(path), axes="xyb"))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    levels = {level: save(folder / f"{level}.mat", level, cube=CUBE, wavelengths=NM) for level in ("5", "7.3")}
    return folder, {level: (folder / f"{level}.mat").read_bytes() for level in levels}


@settings(max_examples=60, deadline=None)
@given(level=st.sampled_from(["5", "7.3"]), cut=st.floats(0, 1), at=st.floats(0, 1), flip=st.integers(0, 255))
def test_damage_ends_in_a_sentence(stored, level, cut, at, flip):
    """Cut off anywhere, any byte changed: a cube or a refusal, nothing else."""
    folder, whole_files = stored
    raw = bytearray(whole_files[level])
    raw[int(at * (len(raw) - 1))] ^= flip
    path = folder / "damaged.mat"
    path.write_bytes(raw[: int(len(raw) * max(cut, 0.2))])
    try:
        cube = open_cube(CubeSource(uri=str(path), axes="byx"))
    except InputRejected as error:
        told = str(error)
    else:
        told = ""
        assert cube.values.shape[0] == len(cube.bands)
    assert "\n" not in told


def test_any_scene_is_a_cube():
    cube = open_cube(CubeSource(uri=f"synthetic:truth?{SMALL}", absorption=False))
    truth = scene("truth")
    np.testing.assert_array_equal(cube.values, whole(truth))
    np.testing.assert_array_equal(cube.bands.center_nm, truth.bands.center_nm)


@pytest.mark.parametrize("text", ["0", "3-2", "7", "a", "1,,2", "-1", ""])
def test_band_numbers_that_are_none(text):
    with pytest.raises(InputRejected, match="between 1 and 6"):
        band_numbers(text, 6, of="bands")


def test_band_numbers():
    assert band_numbers("1-3, 5", 6, of="bands") == [0, 1, 2, 4]


def test_absorption_ranges():
    bands = scene("truth", "size=20&bands=200&low_nm=380&high_nm=2500").bands
    kept = bands.center_nm[~absorbed(bands)]
    assert not np.any((kept > 1350) & (kept < 1450))
    assert not np.any((kept > 1805) & (kept < 1960))
    assert 400 <= kept.min() < kept.max() <= 2410
