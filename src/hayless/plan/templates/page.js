// What is asked for: read from the form, computed by the engine in workers, shown. The engine is the translated code of
// hayless (`hayless.plan` and its like); nothing here computes a figure.
const GB = 1e9;
let drawn = "", awaited = false; // the phases that have bars; whether what is asked can be answered

// Asks a worker: one request at a time, and while it computes only the newest of the others waits. `anew`: a newer
// request breaks off the one that is computed. `region` is busy meanwhile.
function asker(what, region, show, { anew = false } = {}) {
  const source = `${$("engine").textContent}\nonmessage = ({ data: [what, asked] }) => postMessage(hayless[what](asked));`;
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  let worker = null, busy = false, waiting = null;
  function done(answer) {
    busy = false;
    if (waiting) return ask(waiting);
    $(region).removeAttribute("aria-busy");
    show(answer);
  }
  function ask(asked) {
    $(region).setAttribute("aria-busy", "true");
    if (busy && !anew) return void (waiting = asked);
    if (busy) worker.terminate();
    if (busy || !worker) {
      worker = new Worker(address);
      worker.onmessage = ({ data: answer }) => done(answer);
      worker.onerror = (event) => done({ error: `This is a fault of the page, not of what was asked: ${event.message}`, hint: null });
    }
    waiting = null;
    busy = true;
    worker.postMessage([what, asked]);
  }
  return ask;
}

// Counts such as 500k and 1.5B, as everywhere in hayless.
function countOf(text) {
  const found = /^\s*(\d[\d_]*(?:\.\d+)?(?:e\d+)?)\s*([kKMBT]?)\s*$/.exec(text);
  const value = found && Number(found[1].replaceAll("_", "")) * { "": 1, k: 1e3, K: 1e3, M: 1e6, B: 1e9, T: 1e12 }[found[2]];
  return Number.isSafeInteger(value) ? value : null;
}

// The config that is planned, or null with the reason shown.
function config() {
  if ($("preset").value) return data.presets[$("preset").value];
  try {
    const found = JSON.parse($("config").value);
    if (found && typeof found === "object" && !Array.isArray(found)) return found;
    complain("config", "This is no JSON object. A config.json begins with { and ends with }.");
  } catch (error) {
    complain("config", $("config").value.trim() ? `This is not valid JSON: ${error.message}` : "Paste the content of a config.json.");
  }
  return null;
}

const valueOf = (node) => (node.type === "checkbox" ? node.checked : node.tagName === "SELECT" ? node.value : node.value === "" ? null : Number(node.value));

// The methods that are ticked, and the options that are not as they were.
function methods() {
  const ticked = [...document.querySelectorAll("[data-method]:checked")].map((node) => node.dataset.method);
  const all = [...ticked, $("optimizer").value].map((name) => {
    const options = data.methods[name].options.map((option) => [option, valueOf($(`${name}.${option.name}`))]);
    const changed = options.filter(([option, value]) => value !== option.default).map(([option, value]) => [option.name, value]);
    return { method: name, ...Object.fromEntries(changed) };
  });
  return all.filter((given) => given.method !== data.optimizer || Object.keys(given).length > 1);
}

function request() {
  const found = { config: config(), preset: $("preset").value, methods: methods(), precision: $("precision").value, device: $("device").value };
  for (const { name } of data.sliders) found[name] = valueOf($(name));
  const text = $("data_tokens").value;
  found.data_tokens = text.trim() ? countOf(text) : 0;
  if (found.data_tokens === null) complain("data_tokens", "Give a whole number such as 500000, 500k or 2M.");
  return found.config && found.data_tokens !== null ? found : null;
}

// Errors stand beside the field they name, or where the methods are; figures from before are faint meanwhile.
function complain(field, text) {
  const node = document.querySelector(`[data-field="${CSS.escape(field)}"]`), place = $(`${field}-error`) || $("plan-error");
  if (node) node.setAttribute("aria-invalid", "true");
  if (place !== $("plan-error") && drawn) $("plan-error").textContent = "These figures are of what was asked before.";
  place.textContent = text;
  stale(true);
}

function forgive() {
  for (const node of document.querySelectorAll("[aria-invalid]")) node.removeAttribute("aria-invalid");
  for (const node of document.querySelectorAll("form .error, #plan-error")) node.textContent = "";
  stale(false);
}

function stale(old) {
  for (const id of ["bars", "speeds", "phases", "verdict", "command"]) $(id).classList.toggle("stale", old);
  if (old) $("advice-found").classList.add("stale");
}

function fieldOf(message) {
  const named = /^([\w.]+) = /.exec(message)?.[1];
  if (named && document.querySelector(`[data-field="${CSS.escape(named)}"]`)) return named;
  if (Object.keys(data.methods).some((name) => message.startsWith(`${name} `) || message.startsWith(`${name}.`))) return "methods";
  return $("preset").value ? "plan" : "config";
}

// In a pasted config, the line that a message is about.
function withLine(message) {
  const named = /^([\w.]+) = |has no (\w+)\.$|model_type/.exec(message);
  const field = named && (named[1] || named[2] || "model_type");
  const line = field && $("config").value.split("\n").findIndex((text) => text.includes(`"${field}"`));
  return line >= 0 && field ? `Line ${line + 1}: ${message}` : message;
}

const PHASES = { forward: "forward", backward: "backward", step: "update", prefill: "reading", decode: "writing" };
const KINDS = { train: "Training", decode: "Running" };

function showPlan({ found, error, hint }) {
  if (!awaited) return;
  forgive();
  if (error) {
    const field = fieldOf(error);
    return complain(field, [field === "config" ? withLine(error) : error, hint].filter(Boolean).join("\n"));
  }
  const kinds = Object.keys(KINDS).filter((kind) => found[kind]);
  const device = data.devices[$("device").value];
  showVerdict(found, kinds, device);
  showBars(found, kinds, device);
  showFigures(found, kinds);
  $("notes").replaceChildren(...[...found.notes, data.times].map((note) => element("li", {}, note)));
}

function showVerdict(found, kinds, device) {
  const parts = kinds.map((kind) => {
    const { needed_bytes: needed, left_bytes: left, fits } = found[kind];
    const word = fits ? `fits, ${written("left_bytes", left)} left` : `does not fit, ${written("short_bytes", -left)} short`;
    return [element("strong", {}, KINDS[kind]), ` needs ${written("needed_bytes", needed)}: `, element("span", { class: fits ? "good" : "bad" }, word), ". "];
  });
  $("verdict").replaceChildren(...parts.flat(), `${device.name} has ${written("memory_bytes", device.memory_bytes)}.`);
}

// Bars are made once for a set of phases (`drawn`), and moved afterwards.
function showBars(found, kinds, device) {
  const rows = kinds.flatMap((kind) => Object.entries(found[kind].phases).map(([phase, held]) => ({ kind, phase, held, peak: found[kind].peak_phase === phase })));
  const shape = rows.map(({ kind, phase }) => `${kind}.${phase}`).join();
  if (shape !== drawn) {
    drawn = shape;
    $("bars").replaceChildren(...kinds.flatMap((kind) => [element("div", { class: "bar group" }, KINDS[kind]), ...rows.filter((row) => row.kind === kind).map(bar)]));
  }
  const most = 1.02 * Math.max(device.memory_bytes, ...rows.map(({ held }) => held.total_bytes));
  const used = new Set();
  for (const { phase, held, peak, kind } of rows) {
    const node = $(`bar-${kind}-${phase}`), track = node.querySelector(".track"), width = track.clientWidth;
    node.classList.toggle("peak", peak);
    node.querySelector(".total").textContent = written("total_bytes", held.total_bytes);
    const said = [];
    for (const [cause, { title }] of Object.entries(data.causes)) {
      const size = held[`${cause}_bytes`] || 0, part = track.querySelector(`[data-cause="${cause}"]`), share = size / most;
      part.style.width = `${100 * share}%`;
      const amount = written("size_bytes", size), texts = [`${title.replace(/ \(.*/, "")} ${amount}`, amount];
      part.textContent = texts.find((text) => share * width > 6.6 * text.length + 8) ?? "";
      if (size) {
        used.add(cause);
        said.push(`${title} ${amount}`);
      }
    }
    track.querySelector("i").style.left = `${(100 * device.memory_bytes) / most}%`;
    track.setAttribute("aria-label", `${KINDS[kind]}, ${PHASES[phase] || phase}: ${written("total_bytes", held.total_bytes)}. ${said.join(", ")}.`);
  }
  const swatches = Object.keys(data.causes).filter((cause) => used.has(cause)).map((cause) => element("li", {}, element("b", { class: `cause-${cause}`, "aria-hidden": "true" }), data.causes[cause].title));
  $("legend").replaceChildren(...swatches, element("li", {}, element("i", { "aria-hidden": "true" }), `${device.name}: ${written("memory_bytes", device.memory_bytes)}`));
}

function bar({ kind, phase }) {
  const parts = Object.keys(data.causes).map((cause) => element("span", { class: `cause-${cause}`, "data-cause": cause }));
  const track = element("div", { class: "track", role: "img" }, ...parts, element("i"));
  return element("div", { class: "bar", id: `bar-${kind}-${phase}` }, element("span", { class: "name" }, PHASES[phase] || phase), track, element("span", { class: "total" }));
}

function showFigures(found, kinds) {
  const columns = kinds.flatMap((kind) => Object.entries(found[kind].phases).map(([phase, held]) => [`${KINDS[kind]}: ${PHASES[phase] || phase}`, held]));
  const causes = Object.entries(data.causes).filter(([cause]) => columns.some(([, held]) => held[`${cause}_bytes`]));
  const cell = (size) => element("td", {}, size ? written("size_bytes", size) : "");
  const row = (title, of, attributes = {}) => element("tr", attributes, element("th", { scope: "row" }, title), ...columns.map(([, held]) => cell(held[of])));
  $("phases").replaceChildren(
    element("thead", {}, element("tr", {}, element("td"), ...columns.map(([title]) => element("th", { scope: "col" }, title)))),
    element("tbody", {}, ...causes.map(([cause, { title }]) => row(title, `${cause}_bytes`)), row("all", "total_bytes", { class: "all" })),
  );
  const { train = {}, decode = {} } = found;
  const figures = [
    ["parameters", written("parameters", found.parameters)],
    ["trained", written("parameters", found.trainable_parameters)],
    ["step", train.step_seconds && written("step_seconds", train.step_seconds)],
    ["tokens/s, training", train.tokens_per_second && number(train.tokens_per_second)],
    ["GPU-hours", train.gpu_hours && number(train.gpu_hours)],
    ["kWh at most", train.kwh && number(train.kwh)],
    ["ms/token, running", decode.ms_per_token && decode.ms_per_token.toFixed(2)],
    ["tokens/s, running", decode.tokens_per_second && number(decode.tokens_per_second)],
  ];
  $("speeds").replaceChildren(...figures.filter(([, value]) => value).map(([title, value]) => element("div", {}, element("dt", {}, title), element("dd", {}, value))));
}

// The command that prints the same figures.
function command(asked) {
  const model = asked.preset ? `--preset ${asked.preset}` : "path/to/config.json";
  const label = ({ method, ...options }) => {
    const given = Object.entries(options).map(([name, value]) => `${name}=${value}`).join(",");
    return method + (given && `(${given})`);
  };
  const way = asked.methods.map(label).join("+");
  const quoted = (text) => (/[^\w.+,=-]/.test(text) ? `"${text}"` : text);
  const parts = ["hayless plan", model, `--batch ${asked.batch} --seq ${asked.sequence}`, asked.accumulation !== 1 && `--accumulation ${asked.accumulation}`];
  parts.push(`--precision ${asked.precision}`, `--device ${quoted(asked.device)}`, way && `--compare ${quoted(way)}`);
  parts.push(asked.data_tokens > 0 && `--data-tokens ${asked.data_tokens}`);
  return parts.filter(Boolean).join(" ");
}

const askPlan = asker("plan", "memory", showPlan);

// A model is looked at before it is planned: a sequence that is longer than its positions is cut.
const askModel = asker("model", "memory", ({ found, error, hint }) => {
  if (!awaited) return;
  $("about").textContent = found ? `${found.model_type}${found.positions ? `, ${found.positions.toLocaleString("en")} positions` : ""}` : "";
  if (error) return showPlan({ error, hint });
  if (found.positions && valueOf($("sequence")) > found.positions) set("sequence", found.positions);
  update();
});

function updateModel() {
  forgive();
  $("pasted").hidden = $("preset").value !== "";
  const found = config();
  awaited = Boolean(found);
  if (found) askModel({ config: found });
}

function update() {
  forgive();
  for (const node of document.querySelectorAll("[data-options]")) {
    const { options: name } = node.dataset, box = document.querySelector(`[data-method="${name}"]`);
    node.hidden = box ? !box.checked : $("optimizer").value !== name;
  }
  const asked = request();
  awaited = Boolean(asked);
  if (!asked) return;
  $("command").textContent = command(asked);
  askPlan(asked);
  if (data.sliders.every(({ name }) => Number.isInteger(asked[name]) && asked[name] > 0)) adviseSoon(asked);
}

function place(name, value) {
  const { steps } = data.sliders.find((slider) => slider.name === name) || { steps: data.budgets };
  const near = steps.map((step) => Math.abs(Math.log(step / value)));
  $(`${name}-slider`).value = near.indexOf(Math.min(...near));
  $(`${name}-slider`).setAttribute("aria-valuetext", `${value}`);
}

function set(name, value) {
  $(name).value = value;
  if (value > 0) place(name, value);
}

// The form
$("inputs").addEventListener("submit", (event) => event.preventDefault());
$("inputs").addEventListener("input", ({ target }) => {
  const name = target.id.replace(/-slider$/, "");
  if (target.type === "range") $(name).value = data.sliders.find((slider) => slider.name === name).steps[target.value];
  if ($(`${name}-slider`) && target.value !== "") place(name, valueOf($(name)));
  if (target.id === "device") set("memory_gb", data.devices[target.value].memory_bytes / GB);
  if (target.id === "preset" || target.id === "config") updateModel();
  else update();
});
for (const id of ["memory_gb", "memory_gb-slider"])
  $(id).addEventListener("input", ({ target }) => {
    if (target.type === "range") $("memory_gb").value = data.budgets[target.value];
    place("memory_gb", valueOf($("memory_gb")));
    update();
  });
$("advice-found").addEventListener("change", ({ target }) => (chosen.name = choose(target.value)));
for (const [button, from, what] of [["copy-command", "command", "the command"], ["copy-recipe", "recipe", "the recipe"]])
  $(button).addEventListener("click", async () => {
    const before = $(button).textContent;
    await copy($(from).textContent, what);
    $(button).textContent = "Copied";
    setTimeout(() => ($(button).textContent = before), 1500);
  });
drawToWidth($("bars"), () => drawn && update());

function begin({ preset, config: pasted, device, memory_gb, data_tokens, precision, methods: ticked, optimizer, ...work }) {
  $("preset").value = preset;
  $("config").value = pasted;
  for (const [name, value] of Object.entries({ device, precision, optimizer, data_tokens: written("parameters", data_tokens) })) $(name).value = value;
  for (const method of Object.values(data.methods)) {
    const given = ticked.find(({ method: name }) => name === method.name);
    if (given && method.part === "optimizer") $("optimizer").value = method.name;
    for (const option of method.options) {
      const node = $(`${method.name}.${option.name}`), value = given?.[option.name] ?? option.default;
      if (option.kind === "bool") node.checked = value;
      else node.value = value ?? "";
    }
  }
  for (const box of document.querySelectorAll("[data-method]")) box.checked = ticked.some(({ method: name }) => name === box.dataset.method);
  for (const [name, value] of Object.entries({ ...work, memory_gb })) set(name, value);
  updateModel();
}
begin(data.start);
