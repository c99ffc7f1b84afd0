// Charts and packed spectra, inlined into the pages that show them.
const SVG = "http://www.w3.org/2000/svg";

function element(parent, name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

// Round numbers that divide an axis into about so many parts.
function ticks(low, high, parts = 6) {
  const rough = (high - low) / parts || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(f => f * power).find(s => s >= rough);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + 1e-9 * step; k++) found.push(+(k * step).toPrecision(6));
  return found;
}

// Stretches [from, to) of a line without a missing value or a gap.
function runs({ x, y, gap }) {
  const found = [];
  x.forEach((here, k) => {
    if (!Number.isFinite(y[k])) return;
    const last = found.at(-1);
    if (last && last[1] === k && !(gap && here - x[k - 1] > gap)) last[1] = k + 1;
    else found.push([k, k + 1]);
  });
  return found;
}

// Longest step in wavelength (nm) that a line spans. Bands that were dropped leave a gap; coarse sampling does not.
function longestStep(nm) {
  const steps = nm.slice(1).map((here, k) => here - nm[k]).sort((a, b) => a - b);
  return Math.max(60, 2 * (steps[Math.floor(steps.length / 2)] ?? 0));
}

// Lines (or dots) of {x, y, color, name, dots, thin, low, high}; breaks where a value is missing or the next is farther than `gap`.
// `low` and `high`, where given, are the edges of a band of uncertainty around the line. A `share` below 1 of the values
// decides how high the axis reaches; what is higher runs along its top, so that one noisy band does not flatten a spectrum.
function chart(svg, series, xTitle, yTitle, share = 1) {
  svg.replaceChildren();
  // As many units as pixels, so that text is as large on a phone as on a desk.
  const height = +svg.getAttribute("viewBox").split(" ")[3], width = Math.max(Math.min(svg.clientWidth || 900, 900), 320);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const box = { left: 64, right: width - 12, top: 26, bottom: height - 40 };
  const xs = series.flatMap(s => s.x), ys = series.flatMap(s => [...s.y, ...s.low ?? [], ...s.high ?? []]).filter(Number.isFinite);
  if (!ys.length) { element(svg, "text", { x: box.left, y: height / 2, fill: "currentColor" }, "nothing to show here"); return; }
  const sorted = Float64Array.from(ys).sort(), most = sorted.at(-1), usual = sorted[Math.floor(share * (sorted.length - 1))];
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)], low = Math.min(0, sorted[0]), high = share < 1 ? Math.min(most, 1.5 * usual) : most;
  const y1 = high > low ? high : low + 1;
  const px = x => box.left + (x - x0) / (x1 - x0 || 1) * (box.right - box.left);
  const py = y => box.bottom - (Math.min(y, y1) - low) / (y1 - low) * (box.bottom - box.top);
  for (const value of ticks(low, y1)) {
    element(svg, "line", { x1: box.left, x2: box.right, y1: py(value), y2: py(value), stroke: "#d9dee5" });
    element(svg, "text", { x: box.left - 6, y: py(value) + 4, "text-anchor": "end", fill: "currentColor" }, value);
  }
  for (const value of ticks(x0, x1, (box.right - box.left) / 90))
    element(svg, "text", { x: px(value), y: box.bottom + 16, "text-anchor": "middle", fill: "currentColor" }, value);
  element(svg, "text", { x: box.right, y: height - 6, "text-anchor": "end", fill: "currentColor" }, xTitle);
  element(svg, "text", { x: 4, y: 14, fill: "currentColor" }, yTitle);
  let at = box.right;
  for (const s of series) {
    if (s.low) for (const [from, to] of runs({ ...s, y: s.low })) {
      const edge = (values, k) => `${px(s.x[k]).toFixed(1)} ${py(values[k]).toFixed(1)}`;
      const ks = Array.from({ length: to - from }, (_, k) => from + k);
      const outline = [...ks.map(k => edge(s.high, k)), ...ks.reverse().map(k => edge(s.low, k))];
      element(svg, "path", { d: `M${outline.join("L")}Z`, fill: s.color, opacity: 0.2, class: "band" });
    }
    if (s.dots) {
      s.x.forEach((x, k) => Number.isFinite(s.y[k]) && element(svg, "circle", { cx: px(x), cy: py(s.y[k]), r: 5, fill: s.color }));
    } else {
      const path = runs(s).map(([from, to]) =>
        "M" + s.x.slice(from, to).map((x, k) => `${px(x).toFixed(1)} ${py(s.y[from + k]).toFixed(1)}`).join("L")
        + (to - from === 1 ? "h0" : "")).join("");
      // Round caps show a value between two gaps, a line of no length, as a dot.
      element(svg, "path", { d: path, fill: "none", stroke: s.color, "stroke-width": s.thin ? 1 : 2, "stroke-linecap": "round" });
    }
    if (s.name) {
      element(svg, "text", { x: at, y: 14, "text-anchor": "end", fill: s.color, "font-weight": 600 }, s.name);
      at -= 14 + 7.2 * s.name.length;
    }
  }
}

// Little-endian int16 counts of `scale` in base64; -32768 is a missing value.
function unpack(text, scale) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0)), view = new DataView(bytes.buffer);
  const value = count => count === -32768 ? NaN : count * scale;
  return Float32Array.from({ length: bytes.length / 2 }, (_, k) => value(view.getInt16(2 * k, true)));
}

// The spectrum at a crossing of a lattice of (row, col, band) samples.
function spectrumAt(samples, cols, bands, row, col) {
  const first = (row * cols + col) * bands;
  return Array.from(samples.subarray(first, first + bands));
}

const nearest = (list, value) => list.reduce((best, v, k) => Math.abs(v - value) < Math.abs(list[best] - value) ? k : best, 0);

// A slider that moves the border between two pictures, and clicks on them as shares (y, x) of their height and width.
function swipe(slider, boxes, clicked) {
  const show = () => boxes.forEach(box => box.style.setProperty("--cut", `${slider.value}%`));
  slider.addEventListener("input", show);
  show();
  boxes.forEach(box => box.addEventListener("click", event => {
    const place = box.getBoundingClientRect();
    clicked((event.clientY - place.top) / place.height, (event.clientX - place.left) / place.width);
  }));
}

function moveDots(y, x) {
  for (const dot of document.querySelectorAll(".dot")) {
    dot.style.left = `${100 * x}%`;
    dot.style.top = `${100 * y}%`;
  }
}

// Buttons of which one is pressed; `show` gets its position.
function choice(buttons, show) {
  const press = chosen => {
    buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(k === chosen)));
    show(chosen);
  };
  buttons.forEach((button, k) => button.addEventListener("click", () => press(k)));
  if (buttons.length) press(0);
}

function addButtons(parent, names) {
  return names.map(name => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    parent.append(button);
    return button;
  });
}
