// The trade-off: one dot a run on two chosen axes, and the front that no other run beats.
function drawPlot() {
  const [nameX, nameY] = [$("plot-x").value, $("plot-y").value];
  const holder = $("plot");
  const done = data.runs
    .map((run, index) => ({ run, index, x: measured(run, nameX), y: measured(run, nameY) }))
    .filter(({ run }) => shownRuns.has(run) && !run.failed);
  const found = done.filter(({ x, y }) => x !== null && y !== null);
  holder.replaceChildren();
  if (!found.length) {
    holder.append(element("p", { class: "note" }, "No finished run that is shown has both figures."));
    return;
  }
  for (const point of found) {
    const [across, up] = [figureOf(point.run, nameX).predicted, figureOf(point.run, nameY).predicted];
    const shown = $("plot-predicted").checked && (across !== null || up !== null);
    point.predicted = shown ? [across ?? point.x, up ?? point.y] : null;
    point.on = !found.some((other) => beats(other, point, nameX, nameY));
  }
  const width = Math.max(280, holder.clientWidth);
  const box = { width, height: Math.min(460, Math.max(320, width * 0.56)), left: 62, right: 16, top: 26, bottom: 42 };
  const every = (axis, at) => found.flatMap((p) => (p.predicted ? [p[axis], p.predicted[at]] : [p[axis]]));
  const [xs, ys] = [every("x", 0), every("y", 1)];
  const x = scaleOf(xs, spreadWide(xs), box.left, width - box.right);
  const y = scaleOf(ys, spreadWide(ys), box.height - box.bottom, box.top);
  const front = found.filter((point) => point.on).sort((a, b) => a.x - b.x || a.y - b.y);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${box.height}`, height: box.height, role: "group" });
  const names = front.map(({ run }) => run.label).join(", ");
  svg.setAttribute("aria-label", `${metaOf(nameY).title} against ${metaOf(nameX).title}, ${found.length} runs. No run is better on both than: ${names}.`);
  drawAxes(svg, box, x, y, {
    x: axisName(nameX), y: axisName(nameY), writeX: (v) => written(nameX, v), writeY: (v) => written(nameY, v),
  });
  const line = front.map((p) => `${x.place(p.x)},${y.place(p.y)}`).join(" ");
  if (front.length > 1) svg.append(shape("polyline", { class: "front-line", points: line }));
  const marks = [];
  for (const point of [...found].sort((a, b) => a.on - b.on)) svg.append(dotOf(point, x, y, nameX, nameY, marks));
  for (let at = 1; at < front.length; at++) {
    const [from, to] = [front[at - 1], front[at]];
    const pieces = Math.ceil(Math.hypot(to.cx - from.cx, to.cy - from.cy) / 12);
    for (let part = 1; part < pieces; part++)
      marks.push([from.cx + ((to.cx - from.cx) * part) / pieces, from.cy + ((to.cy - from.cy) * part) / pieces]);
  }
  holder.append(svg);
  nameDots(svg, box, found, marks);
  const lacking = done.filter((point) => !found.includes(point)).map(({ run }) => run.label);
  if (!lacking.length) return;
  const rest = lacking.length > 8 ? ` and ${lacking.length - 8} more` : "";
  holder.append(element("p", { class: "note" }, `Not measured on both: ${lacking.slice(0, 8).join(", ")}${rest}.`));
}

function axisName(name) {
  const { title, unit, better } = metaOf(name);
  return `${title}${unit && unit !== "bits/byte" ? ", " + unit : ""} (${better} is better)`;
}

function beats(one, other, nameX, nameY) {
  const x = (metaOf(nameX).better === "higher" ? -1 : 1) * (one.x - other.x);
  const y = (metaOf(nameY).better === "higher" ? -1 : 1) * (one.y - other.y);
  return x <= 0 && y <= 0 && (x < 0 || y < 0);
}

function dotOf(point, x, y, nameX, nameY, marks) {
  const { run, index, predicted } = point;
  const [cx, cy] = [x.place(point.x), y.place(point.y)];
  const text = [nameX, nameY].map((name) => {
    const figure = figureOf(run, name);
    const guess = figure.predicted === null ? "" : ` (predicted ${withUnit(name, figure.predicted)})`;
    return `${metaOf(name).title} ${withUnit(name, figure.value)}${guess}`;
  });
  const label = `${run.label}: ${text.join("; ")}`;
  const group = shape("a", { class: point.on ? "point on" : "point", href: `#run-${index}`, "aria-label": label });
  Object.assign(point, { cx, cy });
  marks.push([cx, cy]);
  if (predicted) {
    const [px, py] = [x.place(predicted[0]), y.place(predicted[1])];
    marks.push([px, py]);
    group.append(shape("line", { class: "reach", x1: px, y1: py, x2: cx, y2: cy }));
    group.append(shape("circle", { class: "hollow", cx: px, cy: py, r: 6.5 }));
  }
  group.append(shape("circle", { class: "dot", cx, cy, r: 4.5 }));
  group.append(shape("circle", { class: "halo", cx, cy, r: 10, "pointer-events": "all" }));
  const show = () => {
    const what = run.changes.length ? ` ${run.changes.join(" → ")}.` : "";
    $("plot-readout").replaceChildren(element("strong", {}, run.label), ` ${text.join("; ")}.${what}`);
  };
  group.addEventListener("pointerenter", show);
  group.addEventListener("focus", show);
  return group;
}

// Names where they cover no dot, no other name and not the line, those on the front first; the rest are read by pointing.
function nameDots(svg, box, found, marks) {
  const taken = [];
  const places = [];
  for (const radius of [11, 17, 25, 36, 50])
    for (const angle of [-0.4, 0.4, Math.PI + 0.4, Math.PI - 0.4, -Math.PI / 2, Math.PI / 2, 0, Math.PI])
      places.push([radius * Math.cos(angle), radius * Math.sin(angle), radius]);
  for (const point of [...found].sort((a, b) => b.on - a.on).slice(0, 60)) {
    const label = point.run.label;
    const name = shape("text", { class: point.on ? "name" : "name off", "aria-hidden": "true" }, label.length > 30 ? label.slice(0, 29) + "…" : label);
    svg.append(name);
    const width = name.getComputedTextLength();
    const clear = places.find(([across, up]) => {
      const left = point.cx + across - (Math.abs(across) < 1 ? width / 2 : across < 0 ? width : 0);
      const area = [left - 2, point.cy + up - 7, left + width + 2, point.cy + up + 7];
      const inside = area[0] > box.left && area[2] < box.width && area[1] > box.top - 8 && area[3] < box.height - box.bottom;
      const free = !taken.some((o) => area[0] < o[2] && o[0] < area[2] && area[1] < o[3] && o[1] < area[3]);
      const apart = !marks.some(([x, y]) => x > area[0] - 7 && x < area[2] + 7 && y > area[1] - 6 && y < area[3] + 6);
      if (!inside || !free || !apart) return false;
      taken.push(area);
      name.setAttribute("x", across < 0 ? left - 2 : left + 2);
      name.setAttribute("y", point.cy + up + 4);
      return true;
    });
    if (!clear) name.remove();
    else if (clear[2] > 17) {
      const [across, up] = clear;
      const ends = { x1: point.cx + across * 0.3, y1: point.cy + up * 0.3, x2: point.cx + across * 0.85, y2: point.cy + up * 0.85 };
      svg.append(shape("line", { class: "leader", ...ends }));
    }
  }
}

if ($("plot")) {
  const axes = data.axes.map((name) => [name, metaOf(name).title]);
  fill($("plot-x"), axes, data.axes.includes("file_bytes") ? "file_bytes" : data.axes.at(-1));
  fill($("plot-y"), axes, data.axes[0]);
  for (const id of ["plot-x", "plot-y", "plot-predicted"]) $(id).addEventListener("change", drawPlot);
  document.addEventListener("filtered", drawPlot);
  drawToWidth($("plot"), drawPlot);
}
