// Training curves of the runs that are ticked.
const CURVES = { loss: "Loss", validation_loss: "Validation loss", learning_rate: "Learning rate", gradient_norm: "Gradient norm", tokens_per_second: "Tokens a second" };
const curveTitle = (name) => CURVES[name] || name.replaceAll("_", " ");
const withCurves = data.runs.map((run, index) => ({ run, index })).filter(({ run }) => Object.keys(run.curves).length);
const MOST_CURVES = 8;

function styleOf(position) {
  return `s${position % 6} d${Math.floor(position / 6) % 4}`;
}

function drawCurves() {
  const metric = $("curve-metric").value;
  const holder = $("curve-plot");
  const shown = [];
  withCurves.forEach(({ run, index }, position) => {
    const ticked = $(`curve-${index}`);
    const points = run.curves[metric];
    ticked.disabled = !points;
    $(`curve-now-${index}`).textContent = "";
    if (ticked.checked && points) shown.push({ index, points, style: styleOf(position), label: run.label });
  });
  holder.replaceChildren();
  if (!shown.length) {
    holder.append(element("p", { class: "note" }, "No run with this curve is ticked."));
    return;
  }
  const width = Math.max(280, holder.clientWidth);
  const box = { width, height: Math.min(380, Math.max(260, width * 0.42)), left: 62, right: 16, top: 26, bottom: 42 };
  const values = shown.flatMap(({ points }) => points.map(([, value]) => value));
  const steps = shown.flatMap(({ points }) => points.map(([step]) => step));
  const x = scaleOf([Math.min(...steps), Math.max(...steps)], false, box.left, width - box.right, 0.01);
  const logarithmic = $("curve-log").checked && Math.min(...values) > 0;
  const y = scaleOf([Math.min(...values), Math.max(...values)], logarithmic, box.height - box.bottom, box.top, 0.05);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${box.height}`, height: box.height, role: "img" });
  const ends = shown.map(({ label, points }) => `${label} ends at ${number(points.at(-1)[1])}`);
  svg.setAttribute("aria-label", `${curveTitle(metric)} by step. ${ends.join("; ")}.`);
  const plain = (value) => (Math.abs(value) >= 1e4 ? scaled(value, [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) : String(Number(value.toPrecision(4))));
  drawAxes(svg, box, x, y, { x: "step", y: curveTitle(metric), writeX: plain, writeY: plain });
  for (const { points, style } of shown) {
    const path = points.map(([step, value]) => `${x.place(step).toFixed(1)},${y.place(value).toFixed(1)}`).join(" ");
    if (points.length > 1) svg.append(shape("polyline", { class: `curve ${style}`, points: path }));
    else svg.append(shape("circle", { class: `curve ${style}`, cx: x.place(points[0][0]), cy: y.place(points[0][1]), r: 3 }));
  }
  const cursor = shape("line", { class: "cursor", y1: box.top, y2: box.height - box.bottom, visibility: "hidden" });
  svg.append(cursor);
  const readAt = (at) => {
    cursor.setAttribute("visibility", "visible");
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    for (const { index, points } of shown) {
      const near = points.reduce((best, point) => (Math.abs(x.place(point[0]) - at) < Math.abs(x.place(best[0]) - at) ? point : best));
      $(`curve-now-${index}`).textContent = `${plain(near[1])} at ${near[0]}`;
    }
  };
  svg.addEventListener("pointermove", (event) => readAt(((event.clientX - svg.getBoundingClientRect().left) / svg.clientWidth) * width));
  const slider = $("curve-step");
  [slider.min, slider.max] = [Math.min(...steps), Math.max(...steps)];
  slider.oninput = () => {
    readAt(x.place(Number(slider.value)));
    slider.setAttribute("aria-valuetext", shown.map(({ index, label }) => `${label} ${$(`curve-now-${index}`).textContent}`).join("; "));
  };
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    for (const { index } of shown) $(`curve-now-${index}`).textContent = "";
  });
  holder.append(svg);
}

if ($("curve-plot")) {
  const names = [...new Set(withCurves.flatMap(({ run }) => Object.keys(run.curves)))];
  const order = Object.keys(CURVES);
  const place = (name) => (order.includes(name) ? order.indexOf(name) : order.length);
  names.sort((a, b) => place(a) - place(b) || a.localeCompare(b));
  const first = names.includes("loss") ? "loss" : names[0];
  fill($("curve-metric"), names.map((name) => [name, curveTitle(name)]), first);
  withCurves.forEach(({ run, index }, position) => {
    const box = element("input", { type: "checkbox", id: `curve-${index}` });
    box.checked = position < MOST_CURVES;
    box.addEventListener("change", drawCurves);
    const swatch = shape("svg", { viewBox: "0 0 28 10", "aria-hidden": "true" }, shape("line", { class: `curve ${styleOf(position)}`, x1: 0, x2: 28, y1: 5, y2: 5 }));
    $("curve-runs").append(element("label", {}, box, swatch, run.label, element("span", { class: "now", id: `curve-now-${index}` })));
  });
  for (const id of ["curve-metric", "curve-log"]) $(id).addEventListener("change", drawCurves);
  drawToWidth($("curve-plot"), drawCurves);
}
