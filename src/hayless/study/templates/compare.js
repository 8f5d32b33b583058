// Two runs side by side: every figure, the difference, and where their recipes differ.
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

// A recipe as paths and values, so that two can be compared field by field.
function leaves(value, path = "", found = {}) {
  if (value !== null && typeof value === "object") {
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

function drawComparison() {
  const [a, b] = [Number($("compare-a").value), Number($("compare-b").value)];
  const [one, two] = [data.runs[a], data.runs[b]];
  const head = (left, ...texts) =>
    element("tr", {}, ...texts.map((text, at) => element("th", at && !left ? { scope: "col" } : { scope: "col", class: "text" }, text)));
  const table = element("table", {}, element("thead", {}, head(false, "Figure", one.label, two.label, "Second − first")));
  const lines = element("tbody");
  const pair = pairOf(b, a);
  for (const name of Object.keys(data.measurements)) {
    if (measured(one, name) === null && measured(two, name) === null) continue;
    const [text, kind] = differenceCell(name, a, b, pair);
    lines.append(element("tr", {},
      element("th", { scope: "row", class: "text" }, metaOf(name).title),
      element("td", {}, withUnit(name, measured(one, name))),
      element("td", {}, withUnit(name, measured(two, name))),
      element("td", { class: `value ${kind}` }, text)));
  }
  table.append(lines);
  const [left, right] = [leaves(named(one.plain)), leaves(named(two.plain))];
  const paths = [...new Set([...Object.keys(left), ...Object.keys(right)])].filter((path) => left[path] !== right[path]);
  const out = $("compare-out");
  out.replaceChildren();
  if (lines.children.length) out.append(table);
  else out.append(element("p", { class: "note" }, "Neither run has figures."));
  if (a === b) return;
  if (!paths.length) {
    out.append(element("p", { class: "note" }, "Their recipes are the same."));
    return;
  }
  const differs = element("table", { class: "differs" }, element("caption", { class: "hidden" }, "Where the recipes differ"));
  differs.append(element("thead", {}, head(true, "Where the recipes differ", one.label, two.label)));
  const fields = element("tbody");
  for (const path of paths)
    fields.append(element("tr", {}, element("th", { scope: "row", class: "text" }, path.replace(/^steps\./, "")), element("td", {}, left[path] ?? "–"), element("td", {}, right[path] ?? "–")));
  differs.append(fields);
  out.append(differs);
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
