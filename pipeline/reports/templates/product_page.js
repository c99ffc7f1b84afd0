const data = JSON.parse(document.getElementById("data").textContent);
const { rows, cols, wavelength_nm: nm, msi_nm: msiNm, presets, scale } = data.spectra;
const gap = longestStep(nm);
const cube = Object.fromEntries(["fused", "hsi", "msi", "error"].filter(k => data.spectra[k]).map(k => [k, unpack(data.spectra[k], scale)]));

function showPoint(row, col) {
  const at = (name, bands) => spectrumAt(cube[name], cols.length, bands, row, col);
  const fused = at("fused", nm.length), error = cube.error && at("error", nm.length);
  // 1.645 standard errors to either side hold 90 % of normal errors.
  const band = error ? { low: fused.map((v, k) => v - 1.645 * error[k]), high: fused.map((v, k) => v + 1.645 * error[k]) } : {};
  chart(document.getElementById("spectrum"), [
    { x: nm, y: fused, color: "#0b62a8", name: "product", gap, ...band },
    { x: nm, y: at("hsi", nm.length), color: "#c26a00", name: "HSI", gap },
    { x: msiNm, y: at("msi", msiNm.length), color: "#1f7a4d", name: "MSI", dots: true },
  ], "wavelength (nm)", data.quantity, 0.98);
  document.getElementById("where").textContent = `Row ${rows[row]}, column ${cols[col]} of the product; the HSI is that of the coarse pixel around it.`;
  moveDots((rows[row] + .5) / data.shape[0], (cols[col] + .5) / data.shape[1]);
}

const swipes = [...document.querySelectorAll(".swipe")];
choice([...document.querySelectorAll("#composites button")], shown => swipes.forEach((one, k) => { one.hidden = k !== shown; }));
swipe(document.getElementById("cut"), swipes, (y, x) => showPoint(nearest(rows, y * data.shape[0]), nearest(cols, x * data.shape[1])));
addButtons(document.getElementById("presets"), presets.map(one => one.name))
  .forEach((button, k) => button.addEventListener("click", () => showPoint(presets[k].row, presets[k].col)));
if (presets.length) showPoint(presets[0].row, presets[0].col);
for (const button of document.querySelectorAll("#arrows")) {
  button.addEventListener("click", () => {
    const shown = document.body.classList.toggle("arrows");
    button.setAttribute("aria-pressed", String(shown));
  });
}

const hsi = data.qa.consistency.hsi;
chart(document.getElementById("bands"), hsi ? [
  { x: hsi.wavelength_nm, y: hsi.band_rmse, color: "#0b62a8", name: "RMSE", gap },
  { x: hsi.wavelength_nm, y: hsi.band_bias, color: "#b3401f", name: "bias", gap },
] : [], "wavelength (nm)", data.quantity);
const seams = data.qa.seams;
if (seams) {
  const half = (seams.profile.length - 1) / 2;
  chart(document.getElementById("seam"), [{ x: seams.profile.map((_, k) => k - half), y: seams.profile.map(v => v === null ? NaN : v), color: "#0b62a8" }],
    "distance from the border between two tiles (px); 0 is the border", "mean absolute gradient");
} else document.getElementById("seam").remove();
