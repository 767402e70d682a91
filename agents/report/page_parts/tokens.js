// The view of tokens: a response, one of whose tokens is chosen, and how that is seen by position
// and through training.

function drawResponse() {
  const of = response(),
    [from, to] = span();
  byId("prompt").textContent = visibleProse(DATA.texts[of.prompt]);
  const chips = byId("chips");
  chips.replaceChildren();
  for (let token = from; token < to; token++) {
    const text = step().text("text", token) || "";
    const chip = el(
      "span",
      {
        class: "chip",
        role: "option",
        tabindex: "-1",
        "aria-selected": "false",
        "data-token": token - from,
      },
      visible(text),
    );
    chip.spoken = `${token - from + 1} ${quoted(text)}`;
    if (text.trim() === "") chip.dataset.ghost = "yes";
    chips.append(chip);
    if (text.includes("\n")) chips.append(el("br"));
  }
  const sum = (name) =>
    step()
      .column(name)
      .subarray(from, to)
      .reduce((a, b) => a + b, 0);
  byId("response-facts").replaceChildren(
    ...[
      ["score", format(of.score, 3)],
      ["gold", format(of.gold_reward, 3)],
      ["KL", `${format(sum("kl"), 3)} nats`],
      ["tokens", format(of.tokens)],
      ["", FINISHES[of.finish_reason]],
      ...(of.bootstrap_value ? [["V after it", format(of.bootstrap_value, 3)]] : []),
    ].map(([name, value]) => el("span", {}, name ? `${name} ` : "", el("b", {}, value))),
  );
  state.token = Math.min(state.token, to - from - 1);
}

/** A prompt keeps its line breaks; what would act is an escape. */
function visibleProse(text) {
  return text
    .split("\n")
    .map((line) => (line === "" ? "" : visible(line, 4000)))
    .join("\n");
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
  const last = chips.length - 1,
    now = state.token;
  const simple = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last };
  if (key in simple) return Math.max(0, Math.min(last, simple[key]));
  if (key !== "ArrowUp" && key !== "ArrowDown") return null;
  const top = (chip) => chip.getBoundingClientRect().top + chip.getBoundingClientRect().height / 2;
  const middle = (chip) =>
    chip.getBoundingClientRect().left + chip.getBoundingClientRect().width / 2;
  const here = top(chips[now]),
    sign = key === "ArrowDown" ? 1 : -1;
  const beyond = chips.map((chip, i) => i).filter((i) => sign * (top(chips[i]) - here) > 8);
  if (!beyond.length) return now;
  const line = sign * least(beyond.map((i) => sign * top(chips[i])));
  const inLine = beyond.filter((i) => Math.abs(top(chips[i]) - line) < 8);
  const x = middle(chips[now]);
  return inLine.reduce(
    (best, i) => (Math.abs(middle(chips[i]) - x) < Math.abs(middle(chips[best]) - x) ? i : best),
    inLine[0],
  );
}

// By position, and through training ----------------------------------------------------------------

function drawStrips() {
  const [from, to] = span();
  const own = (name) => step().column(name).subarray(from, to);
  const part = (name) => numbers(name).subarray(from, to);
  const isTrue = step().isKnownOf(step().column("true_advantage"), state.kind);
  const truth = isTrue ? step().column("true_advantage") : null;
  const rows = [
    ["value", "line", [part("value")]],
    [
      "advantage",
      "bars",
      [part("advantage"), own("advantage"), ...(isTrue ? [own("true_advantage")] : [])],
    ],
    ["kl", "bars", [part("kl")]],
    ["strength", "amount", [part("strength"), own("strength")]],
  ];
  rows.forEach(([name, kind, held], i) => {
    const axis = ends(...held);
    const isKnown = step().isKnown(name);
    const note = !isKnown
      ? "not known"
      : range(axis) + (name === "advantage" && isTrue ? "; line: the true advantage" : "");
    state.strips[i].show({
      label: nameOf(name),
      note,
      values: numbers(name),
      from,
      to,
      kind,
      truth: name === "advantage" ? truth : null,
      ...axis,
    });
  });
}

function drawHistory() {
  const points = run().steps.flatMap((of) => {
    const i = of.responses.findIndex((r) => r.kind === state.kind && r.index === response().index);
    if (i < 0 || state.token >= of.responses[i].tokens || !of.packed[state.colour]) return [];
    const value = of.isText(state.colour)
      ? NaN
      : of.column(state.colour)[of.starts[i] + state.token];
    return Number.isNaN(value) ? [] : [[of.header.step, value]];
  });
  const label = nameOf(state.colour);
  byId("history-title").textContent = `The chosen token through training: ${label}`;
  if (!points.length)
    return byId("history").replaceChildren(el("p", { class: "muted" }, "No number is known."));
  const shown = points.filter((point) => point[0] === step().header.step);
  drawChart(byId("history"), {
    title: `${label} of token ${state.token + 1} through training`,
    height: 130,
    xLabel: "tokens",
    xFrom: 0,
    lines: [],
    series: [
      {
        label,
        role: "line",
        className: "g0",
        x: points.map((p) => p[0]),
        y: points.map((p) => p[1]),
      },
      {
        label: "points",
        role: "dots",
        className: "g0",
        x: points.map((p) => p[0]),
        y: points.map((p) => p[1]),
      },
      {
        label: "the step shown",
        role: "points",
        className: "held-out",
        x: shown.map((p) => p[0]),
        y: shown.map((p) => p[1]),
      },
    ],
  });
}
