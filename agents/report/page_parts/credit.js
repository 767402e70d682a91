// γ and λ: what they are set to, and what is said of them.

/** α of a λ by length where the run has none: that of VAPO. */
const USUAL_ALPHA = 0.05;

/** Compute what γ and λ change, as they are set. */
function computeCredit() {
  const own = ownSettings(step().header);
  state.isOwn = state.gamma === own.gamma && isOwnLambda(own);
  state.credit = credit(step(), state.gamma, state.lambda, state.alpha);
}

function isOwnLambda(own) {
  return state.alpha === own.alpha && (own.alpha !== null || state.lambda === own.lambda);
}

/** Take γ and λ as they are set, and draw what depends on them. */
function moveCredit() {
  computeCredit();
  drawCredit();
}

/** λ as one number for all responses, or by their length. */
function chooseLambda(kind) {
  state.alpha = kind === "length" ? (ownSettings(step().header).alpha ?? USUAL_ALPHA) : null;
  moveCredit();
}

function drawCredit() {
  for (const name of ["gamma", "lambda"]) {
    for (const control of [byId(name), byId(`${name}-number`)]) {
      if (+control.value !== state[name] && control !== document.activeElement)
        control.value = state[name];
    }
  }
  drawAlpha();
  drawPresets();
  if (CREDITED.includes(state.colour)) paint();
  drawStrips();
  drawEstimators();
  moveDetails();
  drawInequalityInTime();
}

function drawAlpha() {
  const isByLength = state.alpha !== null,
    field = byId("alpha");
  byId("lambda-kind").value = isByLength ? "length" : "number";
  byId("lambda-field").hidden = isByLength;
  byId("alpha-field").hidden = !isByLength;
  if (isByLength && +field.value !== state.alpha && field !== document.activeElement)
    field.value = state.alpha;
}

function drawPresets() {
  const own = ownSettings(step().header);
  for (const [id, isSet] of [
    ["preset-run", state.isOwn],
    ["preset-td", !state.isOwn && state.alpha === null && state.lambda === 0],
    ["preset-mc", !state.isOwn && state.alpha === null && state.lambda === 1],
  ]) {
    setAttribute(byId(id), "aria-pressed", isSet);
  }
  setText(byId("credit-note"), [aboutEstimator(own), aboutWhitening(), aboutScale()].join(" "));
}

function aboutEstimator(own) {
  const name = step().header.estimator;
  if (own.isCriticFree) {
    const without = step().isKnown("value") ? "" : " with V = 0, as there is no critic";
    return (
      `The run's estimator is ${name}, which gives all tokens of a response the same: “the run's” ` +
      `is that. Other settings show GAE${without}.`
    );
  }
  const byLength = `1 − 1/(α·l) for a response of l tokens, α = ${brief(own.alpha ?? 0)}`;
  const lambda = own.alpha === null ? brief(own.lambda) : byLength;
  const settings = `γ = ${brief(own.gamma)}, λ = ${lambda} (${name})`;
  return `The run's: ${settings}. ${agreement(own)}`;
}

function aboutWhitening() {
  const whitening = step().header.whitening;
  if (!whitening) return "Advantages are not whitened in this run.";
  const sign = whitening.mean < 0 ? "+" : "−";
  return (
    `Whitened: (A ${sign} ${brief(Math.abs(whitening.mean))}) / ${brief(whitening.deviation)}, ` +
    `mean and deviation of ${whitening.of}, which stay as they are.`
  );
}

function aboutScale() {
  const { factor, shift } = step().header.reward_scale;
  if (factor === 1 && shift === 0) return "";
  return `Rewards enter as ${format(factor)}·r + ${format(shift)}.`;
}

/** How far what is computed here is from what the run has written, at the run's γ and λ. */
function agreement(own) {
  const of = step();
  if (of.difference === undefined) {
    const here = advantagesAt(of, own.gamma, own.lambda, own.alpha).advantage,
      there = of.column("advantage");
    of.difference = 0;
    for (let i = 0; i < here.length; i++) {
      const apart = Math.abs(here[i] - there[i]); // NaN where the run wrote none
      if (apart > of.difference) of.difference = apart;
    }
  }
  if (of.difference < 1e-5) return "Computed here they are what the run wrote.";
  return (
    `Computed here they differ from what the run wrote by up to ${format(of.difference, 2)}: ` +
    "it used settings that this page has no slider for."
  );
}
