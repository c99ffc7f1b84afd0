const data = JSON.parse(document.getElementById("data").textContent);
const { rows, cols, wavelength_nm: nm, presets, labels, colors, differences } = data;
const gap = longestStep(nm);
const cubes = data.spectra.map(text => unpack(text, data.scale));

function showPoint(row, col) {
  chart(document.getElementById("spectrum"), cubes.map((cube, k) => (
    { x: nm, y: spectrumAt(cube, cols.length, nm.length, row, col), color: colors[k], gap }
  )), "wavelength (nm)", data.quantity, 0.98);
  document.getElementById("where").textContent = `Row ${rows[row]}, column ${cols[col]}.`;
  moveDots((rows[row] + .5) / data.shape[0], (cols[col] + .5) / data.shape[1]);
}

const swipes = [...document.querySelectorAll(".swipe")];
choice([...document.querySelectorAll("#composites button")], shown => swipes.forEach((one, k) => { one.hidden = k !== shown; }));
swipe(document.getElementById("cut"), swipes, (y, x) => showPoint(nearest(rows, y * data.shape[0]), nearest(cols, x * data.shape[1])));
const left = document.getElementById("left"), right = document.getElementById("right");
function showPair() {
  for (const one of swipes) {
    one.querySelectorAll("img").forEach((image, k) => {
      image.classList.toggle("before", k === +left.value);
      image.classList.toggle("after", k === +right.value);
    });
    one.querySelector(".left").textContent = labels[+left.value];
    one.querySelector(".right").textContent = labels[+right.value];
  }
}
left.addEventListener("change", showPair);
right.addEventListener("change", showPair);
showPair();
addButtons(document.getElementById("presets"), presets.map(one => one.name))
  .forEach((button, k) => button.addEventListener("click", () => showPoint(presets[k].row, presets[k].col)));
if (presets.length) showPoint(presets[0].row, presets[0].col);

chart(document.getElementById("bands"), differences.flatMap((one, k) => [
  { x: nm, y: one.rmse.map(v => v ?? NaN), color: colors[k + 1], gap },
  { x: nm, y: one.bias.map(v => v ?? NaN), color: colors[k + 1], gap, thin: true },
]), "wavelength (nm)", data.quantity);

const palette = data.scale_colors.map(hex => [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16)));
const maps = differences.map((one, k) => {
  const figure = document.createElement("figure"), canvas = document.createElement("canvas");
  const caption = document.createElement("figcaption");
  [canvas.height, canvas.width] = one.shape;
  canvas.setAttribute("role", "img");
  figure.append(canvas, caption);
  document.getElementById("cells").append(figure);
  return { one, canvas, caption, label: labels[k + 1], bytes: Uint8Array.from(atob(one.cells), c => c.charCodeAt(0)) };
});
const band = document.getElementById("band");
function showBand() {
  const k = +band.value;
  document.getElementById("chosen").textContent = `Band at ${nm[k].toFixed(1)} nm`;
  for (const { one, canvas, caption, label, bytes } of maps) {
    const size = one.shape[0] * one.shape[1], image = new ImageData(one.shape[1], one.shape[0]);
    for (let at = 0; at < size; at++) {
      const value = bytes[k * size + at];
      image.data.set(value < palette.length ? [...palette[value], 255] : [0, 0, 0, 0], 4 * at);
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    canvas.setAttribute("aria-label", `Difference of ${label} at ${nm[k].toFixed(1)} nm`);
    caption.textContent = `${label}: 0 (dark) to ${one.high[k].toPrecision(3)} (bright)`;
  }
}
band.addEventListener("input", showBand);
showBand();
