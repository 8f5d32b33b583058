// What every part of the page uses, beside what every page does.
const figureOf = (run, name) => run.figures[name] || null;
const measured = (run, name) => (figureOf(run, name) ? figureOf(run, name).value : null);
const metaOf = (name) => data.measurements[name] || { title: name, unit: "", better: "lower" };

function withUnit(name, value) {
  const unit = metaOf(name).unit;
  return written(name, value) + (unit && value !== null ? " " + unit : "");
}

// Round positions for an axis from low to high, on a linear or a logarithmic scale.
function ticksOf(low, high, logarithmic, most) {
  const found = [];
  if (logarithmic) {
    const decades = Math.log10(high / low);
    const within = decades > most ? [1] : decades > 1.2 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
    const every = Math.max(1, Math.ceil(decades / most));
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += every)
      for (const part of within) {
        const tick = part * 10 ** power;
        if (tick >= low && tick <= high) found.push(tick);
      }
    if (found.length >= 2) return found.filter((_, index) => index % Math.ceil(found.length / (most + 2)) === 0);
    found.length = 0;
  }
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((part) => part * power).find((size) => size >= rough);
  for (let at = Math.ceil(low / step); at * step <= high; at++) found.push(at * step);
  return found;
}

function scaleOf(values, logarithmic, from, to, margin = 0.08) {
  const change = logarithmic ? Math.log : (value) => value;
  const back = logarithmic ? Math.exp : (value) => value;
  let low = change(Math.min(...values));
  let high = change(Math.max(...values));
  const span = high - low || Math.abs(low) * 0.1 || 1;
  low -= span * margin;
  high += span * margin;
  const place = (value) => from + ((change(value) - low) / (high - low)) * (to - from);
  return { place, low: back(low), high: back(high), logarithmic };
}

const spreadWide = (values) => Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 8;

// Axes with grid lines; returns the scales. `box` has width, height and margins.
function drawAxes(svg, box, x, y, names) {
  const bottom = box.height - box.bottom;
  for (const tick of ticksOf(x.low, x.high, x.logarithmic, Math.max(3, Math.floor(box.width / 130)))) {
    const at = x.place(tick);
    svg.append(shape("line", { class: "grid", x1: at, x2: at, y1: box.top, y2: bottom }));
    svg.append(shape("text", { x: at, y: bottom + 17, "text-anchor": "middle" }, names.writeX(tick)));
  }
  for (const tick of ticksOf(y.low, y.high, y.logarithmic, 5)) {
    const at = y.place(tick);
    svg.append(shape("line", { class: "grid", x1: box.left, x2: box.width - box.right, y1: at, y2: at }));
    svg.append(shape("text", { x: box.left - 8, y: at + 4, "text-anchor": "end" }, names.writeY(tick)));
  }
  svg.append(shape("text", { x: box.left, y: 13 }, names.y));
  svg.append(shape("text", { x: box.width - box.right, y: box.height - 4, "text-anchor": "end" }, names.x));
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const run = data.runs[Number(button.dataset.copy)];
  const before = button.textContent;
  await copy(run.recipe, `the recipe of ${run.label}`);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = before), 1500);
});

// A link to a run opens it.
function openTarget() {
  const target = /^#run-\d+$/.test(location.hash) && document.querySelector(location.hash);
  if (!target) return;
  target.open = true;
  target.scrollIntoView();
  target.querySelector("summary").focus({ preventScroll: true });
}
addEventListener("hashchange", openTarget);
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#run-"]');
  if (link && link.hash === location.hash) openTarget();
});
