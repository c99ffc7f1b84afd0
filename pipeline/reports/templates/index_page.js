const body = document.querySelector("#scenes tbody");
const heads = [...document.querySelectorAll("#scenes th")];

// Numbers by value, text by name; what is missing goes last whichever way.
function key(row, column) {
  const cell = row.cells[column], value = cell.dataset.value;
  if (value === undefined) return cell.textContent;
  return value === "" ? undefined : Number(value);
}

function compare(a, b, sign) {
  if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
  return sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
}

heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  body.append(...[...body.rows].sort((a, b) => compare(key(a, column), key(b, column), sign)));
}));

const states = [...document.querySelectorAll("#states button")];
states.forEach(button => button.addEventListener("click", () => {
  const chosen = button.getAttribute("aria-pressed") === "true" ? null : button.dataset.state;
  states.forEach(other => other.setAttribute("aria-pressed", String(other.dataset.state === chosen)));
  for (const row of body.rows) row.hidden = chosen !== null && row.dataset.state !== chosen;
}));
