// γ and λ, the estimators side by side, and how unequal the strength is.

const UNIFORM = {
  rloo: ["rloo", "the response's return less the mean of the others to its prompt"],
  group: ["group", "the same in standard deviations of the group"],
  reinforce: ["reinforce", "the response's return less the mean of all"],
};

/** Take γ and λ as they are set, and draw what depends on them. */
function moveCredit() {
  const own = ownSettings(step().header);
  state.isOwn = state.gamma === own.gamma && state.lambda === own.lambda;
  state.credit = credit(step(), state.gamma, state.lambda);
  drawCredit();
}

function drawCredit() {
  for (const name of ["gamma", "lambda"]) {
    for (const control of [byId(name), byId(`${name}-number`)]) {
      if (+control.value !== state[name] && control !== document.activeElement) control.value = state[name];
    }
  }
  drawPresets();
  if (CREDITED.includes(state.colour)) paint();
  drawStrips();
  drawEstimators();
  moveDetails();
  drawInequalityInTime();
}

const MANY_TOKENS = 4000;
let waiting = null;

/** At once where that is quick; of many tokens when the sliders have come to rest. */
function drawInequalityInTime() {
  clearTimeout(waiting);
  if (step().count <= MANY_TOKENS) drawInequality();
  else waiting = setTimeout(drawInequality, 80);
}

function drawPresets() {
  const own = ownSettings(step().header), header = step().header;
  for (const [id, isSet] of [["preset-run", state.isOwn], ["preset-td", !state.isOwn && state.lambda === 0], ["preset-mc", !state.isOwn && state.lambda === 1]]) {
    setAttribute(byId(id), "aria-pressed", isSet);
  }
  const whitening = header.whitening
    ? `Whitened: (A ${header.whitening.mean < 0 ? "+" : "−"} ${brief(Math.abs(header.whitening.mean))}) / ${brief(header.whitening.deviation)}, mean and deviation of ${header.whitening.of}, which stay as they are.`
    : "Advantages are not whitened in this run.";
  const scale = header.reward_scale;
  const scaled = scale.factor === 1 && scale.shift === 0 ? "" : ` Rewards enter as ${format(scale.factor)}·r + ${format(scale.shift)}.`;
  setText(byId("credit-note"), own.isCriticFree
    ? `The run's estimator is ${header.estimator}, which gives all tokens of a response the same: “the run's” is that. Other settings show GAE${step().isKnown("value") ? "" : " with V = 0, as there is no critic"}. ${whitening}${scaled}`
    : `The run's: γ = ${brief(own.gamma)}, λ = ${brief(own.lambda)} (${header.estimator}). ${agreement(own)} ${whitening}${scaled}`);
}

/** How far what is computed here is from what the run has written, at the run's γ and λ. */
function agreement(own) {
  const of = step();
  if (of.difference === undefined) {
    const here = advantagesAt(of, own.gamma, own.lambda).advantage, there = of.column("advantage");
    of.difference = here.reduce((most, value, i) => Math.max(most, Math.abs(value - there[i])), 0);
  }
  return of.difference < 1e-5
    ? "Computed here they are what the run wrote."
    : `Computed here they differ from what the run wrote by up to ${format(of.difference, 2)}: it used settings that this page has no slider for.`;
}

// Estimators ---------------------------------------------------------------------------------------

/** γ or λ, as it was set. */
function setting(value) { return String(+value.toPrecision(6)); }

function constant(values) { return Float64Array.from(values); }

/** The estimators that can be shown: label, note, values of all tokens of the step. */
function estimators() {
  const of = step(), header = of.header, gamma = state.gamma;
  if (!of.bounds || of.bounds.gamma !== gamma) {
    of.bounds = { gamma, mc: advantagesAt(of, gamma, 1).advantage, td: advantagesAt(of, gamma, 0).advantage };
  }
  const own = ownSettings(header);
  const isGae = (name) => header.estimator === name && state.gamma === own.gamma;
  const rows = [
    { label: `GAE, γ = ${setting(gamma)}, λ = ${setting(state.lambda)}`, values: state.credit.advantage, isOwn: isGae("gae") && state.lambda === own.lambda },
    { label: "Monte Carlo, λ = 1", values: of.bounds.mc, isOwn: isGae("monte-carlo") },
    { label: "TD, λ = 0", values: of.bounds.td, isOwn: isGae("td") },
  ];
  for (const [name, [label, note]] of Object.entries(UNIFORM)) {
    of.uniform = of.uniform || {};
    of.uniform[name] = of.uniform[name] || constant(of.responses.flatMap((r) => Array(r.tokens).fill(r.uniform[name] === null ? NaN : r.uniform[name])));
    const isMissing = response().uniform[name] === null;
    rows.push({ label: `${label}: one number for all`, about: isMissing ? "not known: no other response to compare with" : note, values: of.uniform[name], isOwn: header.estimator === name, isApart: name === "group" });
  }
  if (of.isKnown("true_advantage")) rows.push({ label: "true advantage A^π", about: "exact", values: of.column("true_advantage"), isTrue: true });
  return rows;
}

function drawEstimators() {
  const [from, to] = span(), rows = estimators();
  const part = (values) => values.subarray(from, to);
  const shared = ends(...rows.filter((row) => !row.isApart).map((row) => part(row.values)));
  const truth = rows.find((row) => row.isTrue);
  while (state.estimators.length < rows.length) state.estimators.push(new Strip(byId("estimators"), choosePointed));
  while (state.estimators.length > rows.length) {
    state.estimators.pop();
    byId("estimators").lastChild.remove();
  }
  rows.forEach((row, i) => {
    const axis = row.isApart ? ends(part(row.values)) : shared;
    const notes = row.about ? [row.about] : [];
    if (truth && !row.isTrue) notes.push(correlations(row.values, truth.values, from, to));
    if (row.isApart || i === 0) notes.push(range(axis));
    state.estimators[i].show({ ...row, note: notes.join(" · "), from, to, kind: "bars", ...axis });
    state.estimators[i].mark(state.token);
  });
  setText(byId("estimator-note"), truth
    ? "All but “group” share one axis. r: correlation with the true advantage, over the tokens of this response, and of all responses of this kind; an estimate that is the same for all tokens of a response has none there."
    : "All but “group” share one axis. The true advantage is known on tasks whose responses can all be listed, as exact.");
}

/** Correlations of columns that do not change, by column; of the others they are forgotten. */
const CORRELATIONS = new WeakMap();

function correlations(values, truth, from, to) {
  const here = correlation(values.subarray(from, to), truth.subarray(from, to));
  if (CORRELATIONS.get(values)?.kind !== state.kind) {
    const all = correlation(step().collected(values, state.kind), step().collected(truth, state.kind));
    CORRELATIONS.set(values, { kind: state.kind, all });
  }
  const { all } = CORRELATIONS.get(values);
  return `r here ${format(here, 2)}, of all ${format(all, 2)}`;
}

// Inequality ---------------------------------------------------------------------------------------

function drawInequality() {
  const strength = numbers("strength"), values = step().collected(strength, state.kind);
  const of = lorenz(values);
  const responses = step().ofKind(state.kind).length;
  const lead = byId("strength-lead");
  if (!of) {
    lead.textContent = "No token of these responses has a strength.";
    for (const id of ["lorenz", "by-position"]) byId(id).replaceChildren();
    return;
  }
  lead.textContent = `No. Of ${grouped(of.n)} tokens in ${grouped(responses)} responses (${state.kind}), the strongest tenth has ${percent(1 - of.part(0.9))} of all update strength `
    + `and the weakest half ${percent(of.part(0.5))}; Gini coefficient ${format(of.gini, 2)} (0: all the same, 1: one token has all).`;
  if (of.gini < 0.005) lead.textContent = lead.textContent.replace("No. Of", "Yes. Of");
  drawChart(byId("lorenz"), {
    title: "Part of all strength that the weakest tokens have", low: 0, high: 1, isTight: true, formatX: (x) => `${Math.round(100 * x)} %`, unit: "of the tokens, the weakest first", height: 210,
    lines: [], series: [
      { label: "all the same", role: "seed", className: "reference-role", x: [0, 1], y: [0, 1] },
      { label: "part of the strength", role: "line", className: "g0", x: of.x, y: of.y },
    ],
  });
  drawByPosition(strength);
}

function drawByPosition(strength) {
  const ranges = step().ofKind(state.kind).map((i) => step().range(i));
  const longest = greatest(ranges.map(([from, to]) => to - from));
  const fewest = Math.min(3, ranges.length);
  const x = [], middle = [], low = [], high = [];
  const column = new Float64Array(ranges.length);
  for (let t = 0; t < longest; t++) {
    let n = 0;
    for (const [from, to] of ranges) if (from + t < to) column[n++] = strength[from + t];
    const here = sorted(column.subarray(0, n));
    if (here.length < fewest) continue;
    x.push(t);
    middle.push(quantile(here, 0.5));
    low.push(quantile(here, 0.25));
    high.push(quantile(here, 0.75));
  }
  drawChart(byId("by-position"), {
    title: "Strength by position", low: 0, formatX: grouped, xLabel: "position", unit: "is the position", height: 210, lines: [],
    series: [{ label: "middle half", role: "band", className: "g0", x, y: [], low, high }, { label: "median", role: "line", className: "g0", x, y: middle }],
  });
}
