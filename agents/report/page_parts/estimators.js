// Estimators side by side, on one response.

const UNIFORM = {
  rloo: ["rloo", "the response's return less the mean of the others to its prompt"],
  group: ["group", "the same in standard deviations of the group"],
  reinforce: ["reinforce", "the response's return less the mean of all"],
};

/** γ or λ, as it was set. */
function setting(value) {
  return String(+value.toPrecision(6));
}

/** The estimators that can be shown: label, note, values of all tokens of the step. */
function estimators() {
  const of = step(),
    header = of.header,
    gamma = state.gamma;
  if (!of.bounds || of.bounds.gamma !== gamma) {
    of.bounds = {
      gamma,
      mc: advantagesAt(of, gamma, 1).advantage,
      td: advantagesAt(of, gamma, 0).advantage,
    };
  }
  const own = ownSettings(header);
  const [from, to] = span(),
    lambda = setting(lambdaOf(to - from, state.lambda, state.alpha));
  const byLength = state.alpha === null ? "" : ` by length, α = ${setting(state.alpha)}`;
  const isGae = (name) => header.estimator === name && state.gamma === own.gamma;
  const rows = [
    {
      label: `GAE, γ = ${setting(gamma)}, λ = ${lambda}${byLength}`,
      values: state.credit.advantage,
      isOwn: isGae("gae") && isOwnLambda(own),
    },
    { label: "Monte Carlo, λ = 1", values: of.bounds.mc, isOwn: isGae("monte-carlo") },
    { label: "TD, λ = 0", values: of.bounds.td, isOwn: isGae("td") },
  ];
  for (const [name, [label, note]] of Object.entries(UNIFORM)) {
    const values = of.uniform(name);
    if (!of.isKnownOf(values, state.kind)) continue;
    const isMissing = response().uniform[name] === null;
    rows.push({
      label: `${label}: one number for all`,
      about: isMissing ? "not known: no other response to compare with" : note,
      values,
      isOwn: header.estimator === name,
      isApart: name === "group",
    });
  }
  const truth = of.column("true_advantage");
  if (of.isKnownOf(truth, state.kind))
    rows.push({ label: "true advantage A^π", about: "exact", values: truth, isTrue: true });
  return rows;
}

function drawEstimators() {
  const [from, to] = span(),
    rows = estimators();
  const part = (values) => values.subarray(from, to);
  const shared = ends(...rows.filter((row) => !row.isApart).map((row) => part(row.values)));
  const truth = rows.find((row) => row.isTrue);
  while (state.estimators.length < rows.length)
    state.estimators.push(new Strip(byId("estimators"), choosePointed));
  while (state.estimators.length > rows.length) {
    state.estimators.pop();
    byId("estimators").lastChild.remove();
  }
  rows.forEach((row, i) => {
    const axis = row.isApart ? ends(part(row.values)) : shared;
    const notes = row.about ? [row.about] : [];
    if (truth && !row.isTrue) notes.push(correlations(row.values, truth.values, from, to));
    if (row.isApart || i === 0) notes.push(`axis ${range(axis)}`);
    state.estimators[i].show({ ...row, note: notes.join(" · "), from, to, kind: "bars", ...axis });
    state.estimators[i].mark(state.token);
  });
  setText(byId("estimator-note"), aboutEstimators(rows, truth));
}

function aboutEstimators(rows, truth) {
  const isShown = (name) => rows.some((row) => row.label.startsWith(name));
  const missing = Object.keys(UNIFORM).filter((name) => !isShown(name));
  const absent = "not known, as there are no other responses to compare with.";
  return [
    missing.length ? `${missing.join(", ")}: ${absent}` : "",
    isShown("group") ? "All but “group” share one axis." : "All share one axis.",
    truth
      ? "r: correlation with the true advantage, over the tokens of this response, and of all " +
        "responses of this kind; an estimate that is the same for all tokens of a response has " +
        "none there."
      : "The true advantage is known of held-out responses on tasks where all can be listed, as exact.",
  ].join(" ");
}

/** Correlations of columns that do not change, by column; of the others they are forgotten. */
const CORRELATIONS = new WeakMap();

function correlations(values, truth, from, to) {
  const here = correlation(values.subarray(from, to), truth.subarray(from, to));
  if (CORRELATIONS.get(values)?.kind !== state.kind) {
    const all = correlation(
      step().collected(values, state.kind),
      step().collected(truth, state.kind),
    );
    CORRELATIONS.set(values, { kind: state.kind, all });
  }
  const { all } = CORRELATIONS.get(values);
  return `r here ${format(here, 2)}, of all ${format(all, 2)}`;
}
