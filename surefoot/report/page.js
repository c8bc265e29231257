"use strict";
// The tabs. Each is drawn when it is first opened, and again when another run is chosen.

const {runs} = JSON.parse(document.getElementById("data").textContent);
const several = runs.length > 1;
let chosen = runs[0], smooth = true;

// What a step is, as the policies say it: tokens, actions ... (a token is a step too, where several runs differ).
const unit = runs.every((run) => run.unit === runs[0].unit) ? runs[0].unit : "steps", one = unit.slice(0, -1);
const started = (words) => words[0].toUpperCase() + words.slice(1);

const SHARES = /^(correct|truncated|zero_groups|clipped.*|heldout\.pass@.*)$/;
const NAMES = {
  "heldout.pass@1": "Held-out accuracy", reward: "Reward", reward_std: "Spread of rewards",
  correct: "Correct in training", entropy: `Entropy (nats per ${one})`, kl: "KL divergence",
  length: `${unit === "tokens" ? "Response length" : "Length"} (${unit})`, grad_norm: "Gradient norm",
  loss: "Loss", clipped: "Clipped steps", truncated: "Cut at the length limit", zero_groups: "Groups without signal",
  lr: "Learning rate", "time.tokens_per_s": `${started(unit)} a second`, "time.total": "Seconds a step",
};
const HIDDEN = /^(heldout\.n|time\.(rollout|score|update|other|tokens)|tokens)$/;

const card = (...children) => el("section", {class: "card"}, ...children);
const empty = (text) => el("p", {class: "empty"}, text);
const format = (name) => (SHARES.test(name) ? percent : number);
const label = (name) => NAMES[name] ||
  (name.startsWith("rewards.") ? `Reward "${name.slice(8)}"` : name.replaceAll("_", " "));
const verdict = (right) => right == null ? el("span", {class: "badge plain"}, "not judged")
  : el("span", {class: `badge ${right ? "right" : "wrong"}`}, right ? "✓ correct" : "✗ wrong");

const reference = (answer) => answer == null ? null
  : el("p", {class: "soft small"}, "Reference answer: ", el("span", {class: "mono"}, answer));

// A table; columns whose head starts with # hold numbers.
function table(heads, rows, shape = "") {
  const cell = (tag, i, content) => el(tag, {class: heads[i].startsWith("#") ? "number" : null}, content);
  return el("div", {class: "scroll"}, el("table", {class: shape},
    el("thead", {}, el("tr", {}, ...heads.map((head, i) => cell("th", i, head.replace("#", ""))))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((content, i) => cell("td", i, content)))))));
}

function legend() {
  if (!several) return null;
  return el("ul", {class: "legend"}, ...runs.map((run, i) =>
    el("li", {}, el("span", {class: "swatch", style: `background:${colour(i)}`}), run.name)));
}

// --- overview ---------------------------------------------------------------------------------------------------

function side(record, key) {
  if (!record || record[key] == null) return null;
  const [low, high] = record[`${key}_interval`] || [];
  return {value: record[key], low, high};
}

const headlineOf = (run) => (run.evaluation.after || run.evaluation.before || {}).headline || "pass@1";
const plainTask = (run) => !headlineOf(run).startsWith("pass@");

// A task without a verifier: its rewards before and after, as numbers.
function rewardsCard(judged) {
  const first = judged[0].evaluation.after || judged[0].evaluation.before;
  const keys = Object.keys(first).filter((k) => typeof first[k] === "number" && k !== "n" && k !== "samples_each");
  const band = (e, k) => e[`${k}_interval`] ? ` [${e[`${k}_interval`].map((v) => number(v)).join(", ")}]` : "";
  const cell = (e, k) => e?.[k] != null ? number(e[k]) + band(e, k) : "–";
  return card(el("h2", {}, `Held-out ${headlineOf(judged[0])}`),
    el("p", {class: "soft small"}, `Means over ${first.n} held-out problems, with 95 % intervals where they are known.`),
    table(["", ...keys.flatMap((k) => [`#${k}, before`, `#${k}, after`])],
      judged.map((run) => [run.name, ...keys.flatMap((k) =>
        [cell(run.evaluation.before, k), cell(run.evaluation.after, k)])])));
}

function pictures(run) {
  if (!run.pictures?.length) return "";
  return card(el("h2", {}, several ? `Pictures, ${run.name}` : "Pictures"),
    el("div", {class: "pictures"}, ...run.pictures.map(({name, data}) => el("figure", {},
      el("img", {src: data, alt: name}), el("figcaption", {class: "soft small"}, name)))));
}

function headline(run) {
  const {before, after} = run.evaluation, gained = after["pass@1"] - before["pass@1"];
  return el("p", {class: "headline"},
    el("b", {}, `${percent(before["pass@1"])} → ${percent(after["pass@1"])}`),
    el("span", {class: `badge ${gained >= 0 ? "right" : "wrong"}`},
      `${gained >= 0 ? "+" : "−"}${Math.abs(100 * gained).toFixed(1)} points`),
    el("span", {class: "soft"}, `accuracy on ${after.n} held-out problems, before and after training`));
}

function accuracy() {
  const judged = runs.filter((r) => r.evaluation.before || r.evaluation.after);
  if (!judged.length) return card(el("h2", {}, "Accuracy"), empty("This run has no evaluation yet."));
  if (judged.some(plainTask)) return rewardsCard(judged);
  const keys = Object.keys(judged[0].evaluation.after || judged[0].evaluation.before)
    .filter((k) => /^(pass|maj)@\d+$/.test(k));
  const rows = keys.flatMap((key) => judged.map((run, i) => ({
    label: i ? "" : key, name: several ? `${run.name}, ${key}` : key, colour: colour(runs.indexOf(run)),
    before: side(run.evaluation.before, key), after: side(run.evaluation.after, key),
  })));
  const whole = !several && judged[0].evaluation.before && judged[0].evaluation.after;
  return card(whole ? headline(judged[0]) : el("h2", {}, "Held-out accuracy"),
    el("p", {class: "soft small"}, "Hollow: before. Filled: after. Bands: 95 % intervals over problems."), legend(),
    intervalChart(rows));
}

function numbersTable() {
  const rows = [];
  for (const run of runs) {
    for (const when of ["before", "after"]) {
      const e = run.evaluation[when];
      if (e) rows.push([several ? `${run.name}, ${when}` : when, e]);
    }
  }
  if (!rows.length || runs.some(plainTask)) return null;
  const accuracies = Object.keys(rows.at(-1)[1]).filter((k) => /^(pass|maj)@\d+$/.test(k));
  const columns = [...accuracies.map((k) => [k, (e) => percent(e[k])]),
    ["ECE", (e) => number(e.ece)], ["AUC", (e) => number(e.auc)], ["entropy", (e) => number(e.entropy)],
    ["length", (e) => number(e.length)], ["problems", (e) => number(e.n)]];
  return card(el("h2", {}, "Evaluation"),
    table(["", ...columns.map(([name]) => `#${name}`)],
      rows.map(([name, e]) => [name, ...columns.map(([, show]) => show(e) || "–")])),
    el("p", {class: "soft small"}, `ECE and AUC set the likelihood per ${one} against correctness; entropy in ` +
      `nats per ${one}, estimated from samples.`));
}

function facts(run) {
  const c = run.config, t = c.train || {};
  const minutes = run.seconds >= 120 ? `${(run.seconds / 60).toFixed(1)} min` : `${run.seconds.toFixed(0)} s`;
  const alarms = run.events.filter((e) => e.kind === "alarm").length;
  const shown = [["Method", c.method?.name], ["Policy", c.policy], ["Task", c.task], ["Steps", number(run.steps)],
    ["Seed", t.seed], [`${started(run.unit)} in all`, run.tokens ? number(run.tokens) : null],
    ["Training time", run.seconds ? minutes : null],
    [`${started(run.unit)} a second`, run.seconds && run.tokens ? number(run.tokens / run.seconds) : null],
    ["Alarms", String(alarms)]];
  return card(several ? el("h2", {}, run.name) : el("h2", {}, "The run"),
    el("dl", {class: "facts"}, ...shown.filter(([, v]) => v != null && v !== "").map(([k, v]) =>
      el("div", {}, el("dt", {}, k), el("dd", {}, String(v))))));
}

function overview() {
  const curves = curveGrid(["reward", ...new Set(runs.map((r) => `heldout.${headlineOf(r)}`))], "filled");
  return [accuracy(), ...runs.map(facts), curves || "", ...runs.map(pictures), numbersTable() || ""];
}

// --- curves -----------------------------------------------------------------------------------------------------

function chart(name) {
  const series = runs.map((run, i) => ({name: run.name, colour: colour(i), points: run.curves[name] || []}))
    .map((s) => ({...s, points: s.points.filter((p) => p[1] != null)})).filter((s) => s.points.length);
  if (!series.length) return null;
  const last = series.length === 1 ? format(name)(series[0].points.at(-1)[1]) : "";
  const head = el("div", {style: "display:flex;justify-content:space-between;gap:12px;margin-bottom:6px"},
    el("h3", {}, label(name)), el("span", {class: "soft small", style: "margin:0"}, last));
  return el("section", {class: "card", "data-curve": name}, head,
    lineChart({title: label(name), series, format: format(name), share: SHARES.test(name),
      smooth: smooth && !name.startsWith("heldout") && name !== "lr"}));
}

function curveGrid(names, shape = "") {
  const drawn = names.map(chart).filter(Boolean);
  return drawn.length ? el("div", {class: `grid ${shape}`}, ...drawn) : null;
}

function curvesTab() {
  const known = Object.keys(NAMES), found = new Set(runs.flatMap((r) => Object.keys(r.curves)));
  const place = (name) => (known.indexOf(name) + 1) || known.length + 1;
  const order = [...found].filter((n) => !HIDDEN.test(n)).sort((a, b) => place(a) - place(b) || a.localeCompare(b));
  const grid = curveGrid(order);
  if (!grid) return [empty("No steps yet.")];
  const box = el("input", {type: "checkbox", checked: smooth});
  box.addEventListener("change", () => {
    smooth = box.checked;
    draw("curves");
    document.querySelector("#panel-curves input").focus();
  });
  return [el("div", {class: "controls"}, el("label", {}, box, "Smooth (each step stays visible behind)")),
    legend() || "", grid];
}

// --- samples ----------------------------------------------------------------------------------------------------

const CHANGES = {
  all: ["All", () => true],
  fixed: ["Now correct", (p) => p.before && p.after && !p.before.correct && p.after.correct],
  broken: ["Now wrong", (p) => p.before && p.after && p.before.correct && !p.after.correct],
  wrong: ["Still wrong", (p) => p.before && p.after && !p.before.correct && !p.after.correct],
  kept: ["Still correct", (p) => p.before && p.after && p.before.correct && p.after.correct],
};
let change = "all";

function pairs(run) {
  const found = new Map();
  for (const when of ["before", "after"]) {
    for (const sample of run.evaluation[when]?.samples || []) {
      const pair = found.get(sample.question) || {question: sample.question, answer: sample.answer};
      pair[when] ??= sample;
      found.set(sample.question, pair);
    }
  }
  return [...found.values()];
}

function said(when, sample) {
  if (!sample) return el("div", {class: "said"}, el("header", {}, when, "not sampled"));
  return el("div", {class: `said ${sample.correct ? "is-right" : "is-wrong"}`},
    el("header", {}, el("span", {}, when), verdict(sample.correct)), el("pre", {}, sample.completion));
}

function samplesTab() {
  const all = pairs(chosen);
  if (!all.length) return [empty("This run has no samples: it has not been evaluated yet.")];
  const buttons = Object.entries(CHANGES).map(([key, [name, keep]]) => {
    const button = el("button", {class: "choice", type: "button", "aria-pressed": String(key === change)},
      `${name} (${all.filter(keep).length})`);
    button.addEventListener("click", () => { change = key; draw("samples"); });
    return button;
  });
  const shown = all.filter(CHANGES[change][1]).map((pair) => card(
    el("p", {class: "question"}, pair.question.trim()),
    reference(pair.answer),
    el("div", {class: "pair"}, said("Before", pair.before), said("After", pair.after))));
  return [el("div", {class: "controls"}, ...buttons), ...(shown.length ? shown : [empty("No such question.")])];
}

// --- rewards ----------------------------------------------------------------------------------------------------

let at = null, open = null;

// Values of a step's rewards as bins: the values themselves where they are few, else eight equal intervals.
function binning(values) {
  const distinct = [...new Set(values)].sort((a, b) => a - b);
  if (distinct.length <= 8) return {labels: distinct.map(number), of: (v) => distinct.indexOf(v)};
  const low = distinct[0], width = (distinct.at(-1) - low) / 8;
  return {labels: Array.from({length: 8}, (_, i) => number(low + (i + 0.5) * width)),
    of: (v) => Math.min(7, Math.floor((v - low) / width))};
}

function bins(rows, scale) {
  const counts = scale.labels.map(() => 0);
  rows.forEach((row) => { counts[scale.of(row[0])] += 1; });
  const last = scale.labels.length - 1;
  const mix = (i) => `color-mix(in oklab, var(--c1), var(--c0) ${last ? (100 * i) / last : 100}%)`;
  return scale.labels.map((name, i) => [name, counts[i], mix(i)]);
}

const silent = (group) => group.rows.every((row) => row[0] === group.rows[0][0]);

function groupCard(group, index, scale, redraw) {
  const quiet = silent(group), mean = group.rows.reduce((sum, row) => sum + row[0], 0) / group.rows.length;
  const note = quiet ? `no signal: all ${number(group.rows[0][0])}`
    : `mean ${number(mean)}, ${group.rows.length} samples`;
  const button = el("button",
    {class: `group ${quiet ? "silent" : ""}`, type: "button", "aria-expanded": String(index === open)},
    el("span", {class: "name"}, group.question.trim() || `group ${index}`),
    histogram(bins(group.rows, scale), 180, 44, false), el("span", {class: "note"}, note));
  button.addEventListener("click", () => {
    open = open === index ? null : index;
    redraw();
    document.querySelectorAll(".group")[index].focus();
  });
  return button;
}

function groupDetail(group) {
  const rows = [...group.rows].sort((a, b) => b[0] - a[0]).map(([reward, right, length, text]) =>
    [number(reward), verdict(right), number(length), el("pre", {}, text)]);
  return card(el("p", {class: "question"}, group.question.trim()), reference(group.answer),
    table(["#Reward", "", `#${started(chosen.unit)}`, "Completion"], rows, "texts"));
}

function stepOfRewards(redraw) {
  const {groups} = chosen.rewards[at], rows = groups.flatMap((g) => g.rows), quiet = groups.filter(silent).length;
  const scale = binning(rows.map((r) => r[0]));
  const signal = quiet ? `${quiet} of ${groups.length} groups (${percent(quiet / groups.length, 0)}) have no signal: ` +
    "all their trajectories got the same reward, so a group baseline leaves nothing to learn from."
    : `${groups.length} groups, and each has trajectories of different rewards to learn from.`;
  return [card(el("h2", {}, `Rewards of all ${rows.length} trajectories`), el("p", {class: "soft small"}, signal),
      el("div", {style: "max-width:620px;margin-top:8px"}, histogram(bins(rows, scale), 620, 150, true))),
    el("h2", {style: "margin:6px 0 10px"}, "Group by group"),
    el("div", {class: "groups", style: "margin-bottom:18px"}, ...groups.map((g, i) => groupCard(g, i, scale, redraw))),
    open != null && groups[open] ? groupDetail(groups[open]) : ""];
}

function rewardsTab() {
  const kept = chosen.rewards;
  if (!kept.length) return [empty("This run kept no rollouts.")];
  if (at == null || at >= kept.length) at = kept.length - 1;
  const slider = el("input", {type: "range", min: 0, max: kept.length - 1, value: at, "aria-label": "Step"});
  const shown = el("b", {}), body = el("div", {});
  const redraw = () => {                // the slider itself stays, so that it can be dragged
    shown.textContent = number(kept[at].step);
    slider.setAttribute("aria-valuetext", `step ${kept[at].step}`);
    body.replaceChildren(...stepOfRewards(redraw));
  };
  slider.addEventListener("input", () => { at = Number(slider.value); open = null; redraw(); });
  redraw();
  return [el("div", {class: "controls"}, el("label", {}, "Step", slider, shown),
    el("span", {class: "soft", style: "margin:0"},
      `${kept.length} of ${chosen.steps || kept.length} steps are kept here`)), body];
}

// --- configuration and events -----------------------------------------------------------------------------------

function configurationTab() {
  if (!chosen.toml) return [empty("This run has no config.toml.")];
  const pre = el("pre", {class: "toml"});
  for (const line of chosen.toml.trimEnd().split("\n")) {
    const pair = /^(\s*[\w."@-]+)(\s*=\s*)(.*)$/.exec(line);
    if (/^\s*\[/.test(line)) pre.append(el("span", {class: "table"}, line));
    else if (pair) {
      const value = pair[3].startsWith('"') ? el("span", {class: "text"}, pair[3]) : pair[3];
      pre.append(el("span", {class: "key"}, pair[1]), pair[2], value);
    } else pre.append(line);
    pre.append("\n");
  }
  return [card(el("h2", {}, "config.toml"), el("p", {class: "soft small", style: "margin-bottom:12px"},
    "Fully resolved: training from it repeats the run."), pre)];
}

const TONE = {alarm: "wrong", stop: "wrong", skip: "wrong", end: "right", evaluation: "right"};

function eventsTab() {
  if (!chosen.events.length) return [empty("Nothing happened yet.")];
  return [card(el("h2", {}, "Events"), table(["#Step", "Kind", "What", "When"], chosen.events.map((e) => [
    String(e.step ?? ""), el("span", {class: `badge ${TONE[e.kind] || "plain"}`}, e.kind), String(e.message ?? ""),
    el("span", {class: "soft small"}, String(e.time ?? "").replace("T", " "))])))];
}

// --- the page ---------------------------------------------------------------------------------------------------

const TABS = {
  overview: ["Overview", overview], curves: ["Curves", curvesTab], samples: ["Samples", samplesTab],
  rewards: ["Rewards", rewardsTab], configuration: ["Configuration", configurationTab], events: ["Events", eventsTab],
};
const OF_ONE_RUN = new Set(["samples", "rewards", "configuration", "events"]);

function draw(name) {
  charts.clear();
  tip.hide();
  document.getElementById(`panel-${name}`).replaceChildren(...TABS[name][1]());
}

function select(name, focus) {
  for (const other of Object.keys(TABS)) {
    const tab = document.getElementById(`tab-${other}`), here = other === name;
    tab.setAttribute("aria-selected", String(here));
    tab.tabIndex = here ? 0 : -1;
    document.getElementById(`panel-${other}`).hidden = !here;
    if (here && focus) tab.focus();
  }
  document.getElementById("picker").hidden = !several || !OF_ONE_RUN.has(name);
  draw(name);
  history.replaceState(null, "", `#${name}`);
}

function start() {
  const [first] = runs, method = first.config.method?.name;
  const about = [method, first.config.task].filter(Boolean).join(" on ") || first.name;
  document.getElementById("title").textContent = several ? `${runs.length} runs compared` : about;
  document.getElementById("subtitle").textContent = runs.map((r) => r.name).join(", ");
  const names = Object.keys(TABS), bar = document.getElementById("tabs");
  for (const name of names) {
    const tab = el("button", {role: "tab", type: "button", id: `tab-${name}`, "aria-controls": `panel-${name}`},
      TABS[name][0]);
    tab.addEventListener("click", () => select(name));
    bar.append(tab);
    document.getElementById("panels").append(
      el("div", {role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}`, hidden: true}));
  }
  bar.addEventListener("keydown", (event) => {
    const here = names.findIndex((n) => document.getElementById(`tab-${n}`).getAttribute("aria-selected") === "true");
    const to = {ArrowRight: here + 1, ArrowLeft: here - 1 + names.length, Home: 0, End: names.length - 1}[event.key];
    if (to != null) { event.preventDefault(); select(names[to % names.length], true); }
  });
  const picker = document.getElementById("run");
  picker.append(...runs.map((run, i) => el("option", {value: i}, run.name)));
  picker.addEventListener("change", () => {
    chosen = runs[picker.value];
    at = open = null;
    select(names.find((n) => !document.getElementById(`panel-${n}`).hidden));
  });
  const wanted = location.hash.slice(1);
  select(names.includes(wanted) ? wanted : "overview");
}

start();
