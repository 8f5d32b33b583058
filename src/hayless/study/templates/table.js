// The results: sorting, filtering, export.
const body = document.querySelector("#table tbody");
const rows = [...body.rows];
const heads = [...document.querySelectorAll("#table thead th[data-key]")];
let sorted = { key: "rank", down: false };
const shownRuns = new Set();

function sortValue(run, key) {
  if (key === "rank") return run.rank;
  if (key === "label") return run.label.toLowerCase();
  if (key === "difference") return run.difference ? run.difference.value : null;
  return measured(run, key);
}

function sortBy(key, down) {
  sorted = { key, down };
  const order = rows.map((row) => [sortValue(data.runs[row.dataset.run], key), Number(row.dataset.run), row]);
  order.sort(([a, i], [b, j]) => {
    if (a === null || b === null) return a === b ? i - j : a === null ? 1 : -1;
    const before = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
    return (down ? -before : before) || i - j;
  });
  body.append(...order.map(([, , row]) => row));
  for (const head of heads) {
    if (head.dataset.key === key) head.setAttribute("aria-sort", down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  $("sort").value = key;
}

for (const head of heads) {
  const button = element("button", { type: "button" });
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const { key } = head.dataset;
    const again = sorted.key === key;
    sortBy(key, again ? !sorted.down : metaOf(key).better === "higher");
  });
}

fill($("sort"), heads.map((head) => [head.dataset.key, head.textContent.trim()]), "rank");
$("reverse").addEventListener("click", () => sortBy(sorted.key, !sorted.down));
$("sort").addEventListener("change", () => sortBy($("sort").value, metaOf($("sort").value).better === "higher"));
heads[0].setAttribute("aria-sort", "ascending");

function filter() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const state = $("filter-state").value;
  shownRuns.clear();
  for (const row of rows) {
    const run = data.runs[row.dataset.run];
    const text = [run.label, run.peer, ...run.changes].join(" ").toLowerCase();
    const right = !state || (state === "done") === !run.failed;
    row.hidden = !right || !words.every((word) => text.includes(word));
    if (!row.hidden) shownRuns.add(run);
  }
  const { size } = shownRuns;
  $("count").textContent = size === rows.length ? `${rows.length} runs` : `${size} of ${rows.length} runs`;
  document.dispatchEvent(new Event("filtered"));
}
$("filter").addEventListener("input", filter);
$("filter-state").addEventListener("change", filter);
filter();

$("beside").addEventListener("change", () => $("table").classList.toggle("without-beside", !$("beside").checked));

function csvCell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  // A spreadsheet must not take text for a formula.
  const text = /^[=+\-@\t\r]/.test(value) ? "'" + value : value;
  return /[",\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}

// The rows shown, in the order shown.
function csvText() {
  const parts = ["value", "low", "high", "predicted", "published"];
  const shown = [...body.rows].filter((row) => !row.hidden).map((row) => data.runs[row.dataset.run]);
  const columns = [];
  for (const name of Object.keys(data.measurements))
    for (const part of parts)
      if (shown.some((run) => figureOf(run, name) && figureOf(run, name)[part] !== null)) columns.push([name, part]);
  const lines = [["run", "peer", "state", "rank", "difference_bits_per_byte"]];
  lines[0].push(...columns.map(([name, part]) => (part === "value" ? name : `${name}_${part}`)), "remark", "reason");
  for (const run of shown) {
    const figures = columns.map(([name, part]) => (figureOf(run, name) ? figureOf(run, name)[part] : null));
    const difference = run.difference ? run.difference.value : null;
    lines.push([run.label, run.peer, run.state, run.rank, difference, ...figures, run.remark, run.reason]);
  }
  return lines.map((line) => line.map(csvCell).join(",")).join("\n") + "\n";
}

$("export").addEventListener("click", () => {
  const address = URL.createObjectURL(new Blob([csvText()], { type: "text/csv" }));
  const link = element("a", { href: address, download: `${data.name}.csv` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
  say("Exported the rows shown as CSV.");
});
