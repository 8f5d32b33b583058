// Two runs side by side: every figure, the difference, the methods that make it, and where the recipes differ.
function pairOf(a, b) {
  const found = data.pairs[`${Math.min(a, b)},${Math.max(a, b)}`];
  if (!found) return null;
  const [value, low, high] = found;
  return a < b ? { value, low, high } : { value: -value, low: high === null ? null : -high, high: low === null ? null : -low };
}

// Spreads that overlap give no verdict.
function overlap(one, two) {
  return one.low !== null && two.low !== null && one.low <= two.high && two.low <= one.high;
}

function signed(text) {
  return text.startsWith("-") ? "−" + text.slice(1) : "+" + text;
}

function differenceCell(name, a, b, pair) {
  const [one, two] = [measured(data.runs[a], name), measured(data.runs[b], name)];
  if (one === null || two === null) return ["–", ""];
  const change = two - one;
  const share = one ? ` (${signed(((100 * change) / Math.abs(one)).toFixed(1))} %)` : "";
  let text = change ? signed(written(name, change)) + share : "equal";
  let sure = change !== 0 && !overlap(figureOf(data.runs[a], name), figureOf(data.runs[b], name));
  const paired = pair && pair.low !== null;
  if (paired && [data.quality, "loss", "perplexity"].includes(name)) sure = pair.low > 0 || pair.high < 0;
  if (paired && name === data.quality) {
    text = `${sure ? "" : "≈ "}${signed(pair.value.toFixed(3))} ± ${((pair.high - pair.low) / 2).toFixed(3)}`;
    if (!sure) text += ", within the noise";
  }
  const better = metaOf(name).better;
  if (!sure || better === "neither") return [text, ""];
  const good = better === "higher" ? change > 0 : change < 0;
  return [`${text} ${good ? "better" : "worse"}`, good ? "good" : "bad"];
}

// How far apart the two were predicted to be, from their recipes alone.
function predictedDifference(name, one, two) {
  const [before, after] = [one, two].map((run) => (figureOf(run, name) ? figureOf(run, name).predicted : null));
  if (before === null || after === null) return "–";
  return after === before ? "equal" : signed(written(name, after - before));
}

// A recipe as paths and values, so that two can be compared field by field.
function leaves(value, path = "", found = {}) {
  const plainList = Array.isArray(value) && value.length > 0 && value.every((inner) => inner === null || typeof inner !== "object");
  if (plainList) found[path] = value.join(", ");
  else if (value !== null && typeof value === "object") {
    for (const [key, inner] of Object.entries(value)) leaves(inner, path ? `${path}.${key}` : key, found);
    if (!Object.keys(value).length) found[path] = Array.isArray(value) ? "none" : "as it is";
  } else if (value !== undefined) found[path] = String(value);
  return found;
}

// Steps are named by what they do, not by their number, so that an added step does not shift the others.
function named(plain) {
  const steps = {};
  for (const step of Array.isArray(plain.steps) ? plain.steps : []) {
    const kind = step && typeof step === "object" ? Object.keys(step)[0] : String(step);
    let inner = step && typeof step === "object" ? step[kind] : {};
    let name = kind;
    if (kind === "apply" && inner && inner.method) {
      const { method, ...options } = inner;
      [name, inner] = [`apply ${method}`, options];
    }
    while (name in steps) name += " again";
    steps[name] = inner;
  }
  return { ...plain, name: undefined, steps };
}

// The methods of a recipe with their options: transforms in the order of the steps, parts of training by their slot.
function methodsOf(plain) {
  const found = new Map();
  const add = (slot, config) => {
    if (!config || typeof config.method !== "string") return;
    const { method, ...options } = config;
    let key = `${slot} ${method}`;
    while (found.has(key)) key += " again";
    found.set(key, { slot, method, options: leaves(options) });
  };
  for (const step of Array.isArray(plain.steps) ? plain.steps : []) {
    const { apply, train } = step && typeof step === "object" ? step : {};
    add("apply", apply);
    if (!train || typeof train !== "object") continue;
    for (const slot of ["objective", "optimizer"]) add(slot, train[slot]);
    for (const config of Array.isArray(train.memory) ? train.memory : []) add("memory", config);
  }
  return found;
}

// What the methods of one run do that those of the other do not, in the words of the methods' own cards.
function methodNotes(one, two) {
  const [left, right] = [methodsOf(one.plain), methodsOf(two.plain)];
  const notes = [];
  if (one.peer !== two.peer) {
    const by = [one, two].map((run) => `${run.label} by ${run.peer || "hayless"}`).join(", ");
    notes.push(element("li", {}, element("strong", {}, "carried out"), `: ${by}.`));
  }
  for (const key of new Set([...left.keys(), ...right.keys()])) {
    const [a, b] = [left.get(key), right.get(key)];
    const { method, slot } = a || b;
    const changed = a && b ? Object.keys({ ...a.options, ...b.options }).filter((name) => a.options[name] !== b.options[name]) : [];
    if (a && b && !changed.length) continue;
    const card = Object.hasOwn(data.methods, method) && data.methods[method];
    const options = a && b
      ? changed.map((name) => `${name} ${a.options[name] ?? "–"} → ${b.options[name] ?? "–"}`)
      : Object.entries((a || b).options).map(([name, value]) => `${name} ${value}`);
    const where = a && b ? "set differently" : `only in ${(a ? one : two).label}`;
    const note = element("li", {}, element("strong", {}, slot === "apply" ? method : `${slot} ${method}`), `, ${where}`);
    note.append(options.length ? ` (${options.join(", ")}). ` : ". ");
    if (card) note.append(card.summary, element("span", { class: "small" }, card.paper));
    notes.push(note);
  }
  return notes;
}

function differencesTable(paths, one, two, left, right) {
  const differs = element("table", { class: "differs stacks" }, element("caption", { class: "hidden" }, "Where the recipes differ"));
  const headings = ["Where the recipes differ", one.label, two.label];
  const head = element("tr", {}, ...headings.map((text) => element("th", { scope: "col", class: "text" }, text)));
  const fields = element("tbody");
  for (const path of paths)
    fields.append(element("tr", {},
      element("th", { scope: "row", class: "text" }, path.replace(/^steps\./, "")),
      element("td", { "data-title": one.label }, left[path] ?? "–"),
      element("td", { "data-title": two.label }, right[path] ?? "–")));
  differs.append(element("thead", {}, head), fields);
  return stacking(differs);
}

// Settings that a run may change while it is resumed: what is learnt does not follow from them.
const isAside = (path) => path.split(".").some((part) => data.aside.includes(part));

function drawComparison() {
  const [a, b] = [Number($("compare-a").value), Number($("compare-b").value)];
  const [one, two] = [data.runs[a], data.runs[b]];
  const headings = [one.label, two.label, "Second − first", "as predicted"];
  const head = element("tr", {}, element("th", { scope: "col", class: "text" }, "Figure"), ...headings.map((text) => element("th", { scope: "col" }, text)));
  const table = element("table", { class: "stacks", id: "compare-figures" }, element("thead", {}, head));
  const lines = element("tbody");
  const pair = pairOf(b, a);
  for (const name of Object.keys(data.measurements)) {
    if (measured(one, name) === null && measured(two, name) === null) continue;
    const [text, kind] = differenceCell(name, a, b, pair);
    const cells = [withUnit(name, measured(one, name)), withUnit(name, measured(two, name)), text, predictedDifference(name, one, two)];
    lines.append(element("tr", {},
      element("th", { scope: "row", class: "text" }, metaOf(name).title),
      ...cells.map((cell, at) => element("td", { "data-title": headings[at], class: at === 2 ? `value ${kind}` : "" }, cell))));
  }
  table.append(lines);
  const out = $("compare-out");
  out.replaceChildren();
  if (lines.children.length) out.append(stacking(table));
  else out.append(element("p", { class: "note" }, "Neither run has figures."));
  if (a === b) return;
  const notes = methodNotes(one, two);
  if (notes.length) out.append(element("h3", {}, "The methods that differ"), element("ul", { class: "methods" }, ...notes));
  const [left, right] = [leaves(named(one.plain)), leaves(named(two.plain))];
  const paths = [...new Set([...Object.keys(left), ...Object.keys(right)])].filter((path) => left[path] !== right[path]);
  if (!paths.length) {
    out.append(element("p", { class: "note" }, "Their recipes are the same."));
    return;
  }
  const shaping = paths.filter((path) => !isAside(path));
  const aside = paths.filter(isAside);
  if (shaping.length) out.append(differencesTable(shaping, one, two, left, right));
  if (aside.length) {
    const words = `${aside.length} more in what is logged, checked and kept, and in how fast it goes`;
    out.append(element("details", { class: "inner" }, element("summary", {}, words), differencesTable(aside, one, two, left, right)));
  }
}

if ($("compare-a")) {
  const options = data.runs.map((run, index) => [String(index), run.label]);
  const base = Math.max(0, data.runs.findIndex((run) => run.label === data.baseline));
  const other = data.runs.findIndex((run, index) => index !== base && !run.failed);
  fill($("compare-a"), options, String(base));
  fill($("compare-b"), options, String(other < 0 ? (base ? 0 : 1) : other));
  for (const id of ["compare-a", "compare-b"]) $(id).addEventListener("change", drawComparison);
  drawComparison();
}
openTarget();
