// What every page of this package uses. Text from elsewhere reaches the page as text nodes and attributes only.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function three(value) {
  return value.toFixed(Math.max(0, 3 - String(Math.floor(Math.abs(value))).length));
}

function scaled(value, steps) {
  for (const [size, unit] of steps) if (Math.abs(value) >= size) return three(value / size) + unit;
  return String(Math.round(value));
}

// The same forms as the tables, for axes and differences.
function written(name, value) {
  if (value === null || !Number.isFinite(value)) return "–";
  if (name.endsWith("_bytes")) {
    const text = scaled(value, [[1e12, " TB"], [1e9, " GB"], [1e6, " MB"], [1e3, " kB"]]);
    return text.endsWith("B") ? text : text + " B";
  }
  if (name.endsWith("parameters")) return scaled(value, [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]);
  if (name.endsWith("_seconds")) {
    if (Math.abs(value) < 1) return Number((value * 1e3).toPrecision(3)) + " ms";
    return Math.abs(value) < 120 ? value.toFixed(1) + " s" : (value / 60).toFixed(1) + " min";
  }
  return number(value);
}

function number(value) {
  if (value && !(Math.abs(value) >= 1e-4 && Math.abs(value) < 1e9)) return value.toExponential(2);
  const digits = Math.abs(value) >= 1 ? Math.max(0, 4 - String(Math.floor(Math.abs(value))).length) : 4;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

// On a phone the rows of some tables are laid out as blocks; the roles keep them tables for screen readers.
const ROLES = { TABLE: "table", THEAD: "rowgroup", TBODY: "rowgroup", TFOOT: "rowgroup", TR: "row", TD: "cell" };
function stacking(table) {
  for (const node of [table, ...table.querySelectorAll("thead, tbody, tfoot, tr, td, th")])
    node.setAttribute("role", ROLES[node.tagName] || (node.scope === "row" ? "rowheader" : "columnheader"));
  return table;
}

function say(text) {
  $("said").textContent = text;
}

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
  select.value = chosen;
}

// Draws now, and again whenever the width of `node` has changed.
function drawToWidth(node, draw) {
  draw();
  let width = node.clientWidth;
  new ResizeObserver(() => {
    if (Math.abs(node.clientWidth - width) < 2) return;
    width = node.clientWidth;
    requestAnimationFrame(draw);
  }).observe(node);
}

for (const node of document.querySelectorAll(".needs-script")) node.hidden = false;
document.querySelectorAll("table.stacks").forEach(stacking);

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { readonly: "" }, text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(`Copied ${what}.`);
}
