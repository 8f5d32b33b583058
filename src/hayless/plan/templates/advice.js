// What fits into so much memory: ways to train the model and ways to run it, and the recipe of the one that is chosen.
const amount = (name) => (choice) => written(name, choice[name]);
const TABLES = {
  training: {
    columns: {
      update: (choice) => `${choice.accumulation} × ${choice.micro_batch}`,
      needs: amount("needed_bytes"),
      left: amount("left_bytes"),
      "tokens/s": (choice) => number(choice.tokens_per_second),
      "GPU-hours": (choice) => number(choice.gpu_hours),
      "gives up": (choice) => choice.gives_up.join("; ") || "nothing",
    },
    rows: (found) => found.fitting.map((choice, at) => ({ ...choice, recipe: found.recipes[at] })),
  },
  running: {
    columns: {
      context: (choice) => `${choice.batch} × ${choice.context.toLocaleString("en")}`,
      weights: amount("weights_bytes"),
      needs: amount("needed_bytes"),
      "ms/token": (choice) => choice.ms_per_token.toFixed(2),
      fits: (choice) => (choice.fits ? `yes, ${written("left_bytes", choice.left_bytes)} left` : "no"),
    },
    rows: (found) => found,
  },
};
const chosen = { rows: {}, name: "" };
let soon = 0;

function adviseSoon(asked) {
  clearTimeout(soon);
  for (const kind of Object.keys(TABLES)) $(kind).setAttribute("aria-busy", "true");
  $("advice-state").textContent = "computing …";
  $("advice-found").classList.add("stale");
  soon = setTimeout(() => {
    const tokens = asked.data_tokens || data.start.data_tokens;
    const full = { ...asked, memory_bytes: Math.round(GB * valueOf($("memory_gb"))), data_tokens: tokens, model: "path/to/model", data: "texts/" };
    const rows = (count) => `${count.toLocaleString("en")} row${count === 1 ? "" : "s"}`, length = asked.sequence.toLocaleString("en");
    $("advice-about").textContent = `To train it: updates of ${rows(asked.batch * asked.accumulation)} of ${length} tokens, ${written("parameters", tokens)} tokens in all, each way at the fastest setting that fits. To run it: ${rows(asked.batch)} at once, with the longest context that fits. Times are those of the ${asked.device}.`;
    for (const [kind, ask] of Object.entries(asking)) ask(full);
  }, 250);
}

const asking = Object.fromEntries(
  Object.keys(TABLES).map((kind) => [kind, asker(kind, kind, (answer) => showAdvice(kind, answer), { anew: true })]),
);

function showAdvice(kind, { found, error, hint }) {
  if (!$("advice-found").querySelector("[aria-busy]")) {
    $("advice-state").textContent = "";
    $("advice-found").classList.remove("stale");
  }
  $(`${kind}-error`).textContent = [error, hint].filter(Boolean).join("\n");
  $(kind).hidden = Boolean(error);
  const { columns, rows } = TABLES[kind];
  chosen.rows[kind] = error ? [] : rows(found);
  const attributes = (title) => ({ "data-title": title, class: title === "gives up" ? "text" : "" });
  const head = Object.keys(columns).map((title) => element("th", { ...attributes(title), scope: "col" }, title));
  const body = chosen.rows[kind].map((choice, at) => {
    const radio = choice.recipe ? [element("input", { type: "radio", name: "choice", value: `${kind}.${at}` })] : [];
    const cells = Object.entries(columns).map(([title, write]) => element("td", attributes(title), write(choice)));
    return element("tr", {}, element("th", { scope: "row", class: "text" }, element("label", {}, ...radio, choice.name)), ...cells);
  });
  $(kind).replaceChildren(element("thead", {}, element("tr", {}, element("td"), ...head)), element("tbody", {}, ...body));
  stacking($(kind));
  if (kind === "training") showUnfit(error ? [] : found.others);
  chooseAgain();
}

function showUnfit(others) {
  $("unfit").hidden = !others.length;
  $("unfit").querySelector("summary").textContent = `Does not fit, not even one row at once: ${others.length}`;
  const needs = (choice) => element("li", {}, `${choice.name}: needs ${written("needed_bytes", choice.needed_bytes)}`);
  $("unfit").querySelector("ul").replaceChildren(...others.map(needs));
}

// What was chosen before, or else the first that has a recipe.
function chooseAgain() {
  const all = Object.keys(TABLES).flatMap((kind) => (chosen.rows[kind] || []).map((choice, at) => [`${kind}.${at}`, choice]));
  const offered = all.filter(([, choice]) => choice.recipe);
  const again = offered.find(([place, choice]) => `${place.split(".")[0]} ${choice.name}` === chosen.name) || offered[0];
  $("chosen").hidden = !again;
  if (again) choose(again[0]);
}

function choose(place) {
  const [kind, at] = place.split(".");
  for (const radio of $("advice-found").querySelectorAll("[type=radio]")) {
    radio.checked = radio.value === place;
    radio.closest("tr").classList.toggle("chosen", radio.checked);
  }
  $("recipe").textContent = yaml(chosen.rows[kind][at].recipe);
  return `${kind} ${chosen.rows[kind][at].name}`;
}
