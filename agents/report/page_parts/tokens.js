// The view of tokens: a response on coloured grounds, one token's numbers, and its way through
// training. `state` says what is shown; everything is drawn from it.

const state = {
  run: 0, step: 0, kind: null, response: 0, token: 0, colour: "whitened", scale: "step",
  gamma: 1, lambda: 1, isOwn: true, credit: null,
};

/** What γ and λ change. */
const CREDITED = ["delta", "advantage", "whitened", "return", "weight", "strength"];

const GROUPS = {
  Credit: ["whitened", "advantage", "true_advantage", "delta", "value", "return"],
  Reward: ["reward", "reward_score", "reward_kl", "reward_reference", "reward_actor"],
  Policy: ["log_prob", "ref_log_prob", "kl", "full_kl", "entropy"],
  Update: ["weight", "strength", "share", "exact_strength", "exact_share", "ratio", "clip", "value_loss", "entropy_bonus", "kl_loss"],
};

const NAMES = {
  whitened: "whitened advantage", advantage: "advantage A", true_advantage: "true advantage", delta: "δ", value: "V",
  return: "return", reward: "reward r", reward_score: "of the score", reward_kl: "of the KL", reward_reference: "β·log π_ref",
  reward_actor: "−β·log π", log_prob: "log π", ref_log_prob: "log π_ref", kl: "KL, sampled", full_kl: "KL, full",
  entropy: "entropy", weight: "weight w", strength: "strength", share: "share", exact_strength: "strength, exact",
  exact_share: "share, exact", ratio: "ratio", clip: "clip", value_loss: "value loss", entropy_bonus: "entropy bonus", kl_loss: "KL loss",
};

/** Which are shown on both sides of 0 (the ratio: of 1), even where all are on one side. */
const SIGNED = new Set([...GROUPS.Credit, ...GROUPS.Reward.slice(0, 3), "kl", "weight", "share", "exact_share", "ratio"]);

function nameOf(column) { return NAMES[column] || column; }
function run() { return RUNS[state.run]; }
function step() { return run().steps[state.step]; }
function response() { return step().responses[state.response]; }
function span() { return step().range(state.response); }

/** A column of the step, as γ and λ have it now. */
function numbers(column) {
  return !state.isOwn && CREDITED.includes(column) ? state.credit[column] : step().column(column);
}

// Colours ------------------------------------------------------------------------------------------

/** How a column is coloured: around which centre, on one side or both, up to which distance. */
function colouring(column) {
  const centre = column === "ratio" ? 1 : 0;
  const from = state.scale === "response" ? [step().column(column).subarray(...span())]
    : (state.scale === "training" ? run().steps : [step()]).filter((s) => s.packed[column]).map((s) => s.collected(s.column(column), state.kind));
  // The run's own numbers set the scale, so that it stays where it is while γ and λ move.
  const distances = new Float64Array(from.reduce((sum, values) => sum + values.length, 0));
  let at = 0, low = Infinity, high = -Infinity;
  for (const values of from) {
    for (let i = 0; i < values.length; i++) {
      distances[at++] = Math.abs(values[i] - centre);
      if (values[i] < low) low = values[i];
      if (values[i] > high) high = values[i];
    }
  }
  const isSigned = SIGNED.has(column) || (low < centre && high > centre);
  const most = state.scale === "response" ? 1 : 0.98;
  const ordered = sorted(distances);
  const cap = quantile(ordered, most) || ordered.at(-1) || 1;
  return { centre, isSigned, isBelow: !isSigned && high <= centre, cap: cap > 0 && cap < Infinity ? cap : 1 };
}

/** Give every token of the response its ground. */
function paint() {
  const [from] = span();
  const chips = byId("chips").querySelectorAll(".chip");
  if (state.colour === "clip") {
    chips.forEach((chip, i) => paintChip(chip, ["high", "low", "neither"].includes(clipOf(from + i)) ? clipOf(from + i) : "unknown"));
    return drawLegendOfClips();
  }
  const values = numbers(state.colour);
  if (!state.colouring) state.colouring = colouring(state.colour);
  const { centre, isSigned, cap } = state.colouring;
  chips.forEach((chip, i) => {
    const value = values[from + i], distance = Math.min(1, Math.abs(value - centre) / cap);
    if (Number.isNaN(value)) paintChip(chip, "unknown");
    else paintChip(chip, (isSigned ? (value < centre ? "less" : "more") : "amount") + (distance > 0.04 ? " marked" : ""), distance);
    setAttribute(chip, "aria-label", `${chip.spoken} ${nameOf(state.colour)} ${format(value, 3)}`);
  });
  drawLegendOfColours();
}

function paintChip(chip, className, amount = 0) {
  setAttribute(chip, "class", `chip ${className}${chip.dataset.ghost ? " ghost" : ""}`);
  chip.style.setProperty("--amount", `${(100 * amount).toFixed(1)}%`);
}

function clipOf(token) {
  const clip = step().text("clip", token);
  return clip === "" ? "neither" : clip;
}

function drawLegendOfColours() {
  const { centre, isSigned, isBelow, cap } = state.colouring;
  const [low, high] = isSigned ? [centre - cap, centre + cap] : isBelow ? [0, -cap] : [0, cap];
  byId("legend").replaceChildren(
    el("b", {}, nameOf(state.colour)),
    el("span", { class: "ramp-box" }, `${isSigned ? "≤ " : ""}${brief(low)}`,
      el("span", { class: `ramp ${isSigned ? "signed" : "one-way"}` }), `${isBelow ? "≤" : "≥"} ${brief(high)}`),
    ...(isSigned ? [el("span", {}, `line above: more than ${centre}, below: less`)] : []),
    el("span", { class: "unknown-key" }, el("span", { class: "swatch chip unknown" }), "not known"),
  );
}

function drawLegendOfClips() {
  const entry = (name, words) => el("span", {}, el("span", { class: `swatch chip ${name}` }), words);
  byId("legend").replaceChildren(el("b", {}, "clip"), entry("high", "ratio too high: no gradient"), entry("low", "ratio too low: no gradient"),
    entry("neither", "not clipped"), entry("unknown", "in no update"));
}

// The response -------------------------------------------------------------------------------------

function drawResponse() {
  const of = response(), [from, to] = span();
  byId("prompt").textContent = visibleProse(DATA.texts[of.prompt]);
  const chips = byId("chips");
  chips.replaceChildren();
  for (let token = from; token < to; token++) {
    const text = step().text("text", token) || "";
    const chip = el("span", { class: "chip", role: "option", tabindex: "-1", "aria-selected": "false", "data-token": token - from }, visible(text));
    chip.spoken = `${token - from + 1} ${quoted(text)}`;
    if (text.trim() === "") chip.dataset.ghost = "yes";
    chips.append(chip);
    if (text.includes("\n")) chips.append(el("br"));
  }
  const sum = (name) => step().column(name).subarray(from, to).reduce((a, b) => a + b, 0);
  byId("response-facts").replaceChildren(...[
    ["score", format(of.score, 3)], ["gold", format(of.gold_reward, 3)], ["KL", `${format(sum("kl"), 3)} nats`], ["tokens", format(of.tokens)],
    ["", FINISHES[of.finish_reason]], ...(of.bootstrap_value ? [["V after it", format(of.bootstrap_value, 3)]] : []),
  ].map(([name, value]) => el("span", {}, name ? `${name} ` : "", el("b", {}, value))));
  state.token = Math.min(state.token, to - from - 1);
}

/** A prompt keeps its line breaks; what would act is an escape. */
function visibleProse(text) {
  return text.split("\n").map((line) => (line === "" ? "" : visible(line, 4000))).join("\n");
}

/** Choose a token: mark it everywhere, show its numbers. */
function choose(token, isFocused = false) {
  const chips = byId("chips").querySelectorAll(".chip");
  const before = chips[state.token];
  if (before) {
    before.setAttribute("aria-selected", "false");
    before.tabIndex = -1;
  }
  state.token = token;
  chips[token].setAttribute("aria-selected", "true");
  chips[token].tabIndex = 0;
  if (isFocused) chips[token].focus();
  for (const strip of [...state.strips, ...state.estimators]) strip.mark(token);
  drawDetails();
  if (!byId("history-panel").hidden) drawHistory();
}

/** The token a key leads to: neighbours, the ends, or the nearest of the line above or below. */
function tokenByKey(key) {
  const chips = [...byId("chips").querySelectorAll(".chip")];
  const last = chips.length - 1, now = state.token;
  const simple = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last };
  if (key in simple) return Math.max(0, Math.min(last, simple[key]));
  if (key !== "ArrowUp" && key !== "ArrowDown") return null;
  const top = (chip) => chip.getBoundingClientRect().top + chip.getBoundingClientRect().height / 2;
  const middle = (chip) => chip.getBoundingClientRect().left + chip.getBoundingClientRect().width / 2;
  const here = top(chips[now]), sign = key === "ArrowDown" ? 1 : -1;
  const beyond = chips.map((chip, i) => i).filter((i) => sign * (top(chips[i]) - here) > 8);
  if (!beyond.length) return now;
  const line = sign * least(beyond.map((i) => sign * top(chips[i])));
  const inLine = beyond.filter((i) => Math.abs(top(chips[i]) - line) < 8);
  const x = middle(chips[now]);
  return inLine.reduce((best, i) => (Math.abs(middle(chips[i]) - x) < Math.abs(middle(chips[best]) - x) ? i : best), inLine[0]);
}

// One token ----------------------------------------------------------------------------------------

function drawDetails() {
  const [from, to] = span(), token = from + state.token;
  const text = step().text("text", token) || "";
  const about = el("div", { class: "block" },
    el("h3", {}, `Token ${state.token + 1} of ${to - from}`),
    el("bdi", { class: "token-text" }, visible(text, 2000)),
    el("p", { class: "muted" }, `id ${step().column("token")[token]}, position ${state.token}, probability ${percent(Math.exp(step().column("log_prob")[token]))}`));
  const others = Object.keys(run().columns).filter((name) => !DATA.known_columns.includes(name));
  const blocks = Object.entries({ ...GROUPS, Other: others }).map(([title, columns]) => {
    const known = columns.filter((name) => step().isKnown(name));
    return known.length ? el("div", { class: "block" }, el("h4", {}, title), el("dl", {}, ...known.flatMap((name) => detail(name, token)))) : null;
  });
  drawReadout(token);
  const missing = Object.values(GROUPS).flat().filter((name) => !step().isKnown(name)).map(nameOf);
  if (missing.length) blocks.push(el("p", { class: "muted" }, `Not known at this step: ${missing.join(", ")}.`));
  byId("details").replaceChildren(about, alternatives(token), ...blocks.filter(Boolean));
}

/** Show what γ and λ have changed of the token, in its places. */
function moveDetails() {
  const token = span()[0] + state.token;
  for (const place of byId("details").querySelectorAll("dd[data-column]")) {
    const name = place.dataset.column;
    if (CREDITED.includes(name)) place.replaceWith(detail(name, token)[1]);
  }
  drawReadout(token);
}

function drawReadout(token) {
  const columns = [...new Set([state.colour, "value", "advantage", "kl", "strength"])].filter((name) => step().isKnown(name) && !step().isText(name));
  const words = columns.map((name) => ` · ${nameOf(name)} ${brief(numbers(name)[token])}`);
  byId("readout").replaceChildren(el("b", {}, `${state.token + 1} ${quoted(step().text("text", token) || "")}`), ...words);
}

function detail(name, token) {
  const own = step().isText(name) ? step().text(name, token) : step().column(name)[token];
  const shown = step().isText(name) ? (own === null ? "–" : own === "" ? "none" : visible(own)) : format(numbers(name)[token]);
  const isMoved = !state.isOwn && CREDITED.includes(name);
  return [
    el("dt", { title: run().columns[name] }, nameOf(name)),
    el("dd", { "data-column": name }, isMoved ? el("span", { class: "muted" }, `run ${format(own)} → `) : null, shown),
  ];
}

function alternatives(token) {
  const list = el("ol", { class: "alternatives" });
  const width = step().packed.top_tokens.width;
  const ids = step().column("top_tokens"), probs = step().column("top_probs"), texts = step().column("top_texts");
  for (let i = token * width; i < (token + 1) * width; i++) {
    if (ids[i] < 0) continue;
    const isTaken = ids[i] === step().column("token")[token];
    const bar = el("span", { class: "bar" });
    bar.style.setProperty("--part", `${(100 * Math.max(0, Math.min(1, probs[i]))).toFixed(1)}%`);
    list.append(el("li", { title: `id ${ids[i]}` }, el("span", { class: "taken", "aria-label": isTaken ? "taken" : null }, isTaken ? "▸" : ""), bar,
      el("span", { class: "word" }, visible(texts[i] < 0 ? "" : DATA.texts[texts[i]], 60)), el("span", { class: "p" }, percent(probs[i]))));
  }
  return el("div", { class: "block" }, el("h4", {}, "Most likely here"), list);
}

// By position, and through training ----------------------------------------------------------------

function drawStrips() {
  const [from, to] = span();
  const own = (name) => step().column(name).subarray(from, to);
  const part = (name) => numbers(name).subarray(from, to);
  const isTrue = step().isKnown("true_advantage");
  const truth = isTrue ? step().column("true_advantage") : null;
  const rows = [
    ["value", "line", [part("value")]],
    ["advantage", "bars", [part("advantage"), own("advantage"), ...(isTrue ? [own("true_advantage")] : [])]],
    ["kl", "bars", [part("kl")]],
    ["strength", "amount", [part("strength"), own("strength")]],
  ];
  rows.forEach(([name, kind, held], i) => {
    const axis = ends(...held);
    const isKnown = step().isKnown(name);
    const note = !isKnown ? "not known" : range(axis) + (name === "advantage" && isTrue ? "; line: the true advantage" : "");
    state.strips[i].show({ label: nameOf(name), note, values: numbers(name), from, to, kind, truth: name === "advantage" ? truth : null, ...axis });
  });
}

function drawHistory() {
  const points = run().steps.flatMap((of) => {
    const i = of.responses.findIndex((r) => r.kind === state.kind && r.index === response().index);
    if (i < 0 || state.token >= of.responses[i].tokens || !of.packed[state.colour]) return [];
    const value = of.isText(state.colour) ? NaN : of.column(state.colour)[of.starts[i] + state.token];
    return Number.isNaN(value) ? [] : [[of.header.step, value]];
  });
  const label = nameOf(state.colour);
  byId("history-title").textContent = `The chosen token through training: ${label}`;
  if (!points.length) return byId("history").replaceChildren(el("p", { class: "muted" }, "No number is known."));
  const shown = points.filter((point) => point[0] === step().header.step);
  drawChart(byId("history"), {
    title: `${label} of token ${state.token + 1} through training`, height: 130, xLabel: "tokens", xFrom: 0, lines: [],
    series: [{ label, role: "line", className: "g0", x: points.map((p) => p[0]), y: points.map((p) => p[1]) },
      { label: "points", role: "dots", className: "g0", x: points.map((p) => p[0]), y: points.map((p) => p[1]) },
      { label: "the step shown", role: "points", className: "held-out", x: shown.map((p) => p[0]), y: shown.map((p) => p[1]) }],
  });
}
