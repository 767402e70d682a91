// One token: all its numbers, and the tokens that were most likely in its place.

function drawDetails() {
  const [from, to] = span(),
    token = from + state.token;
  const text = step().text("text", token) || "";
  const prob = Math.exp(step().column("log_prob")[token]);
  const about = el(
    "div",
    { class: "block" },
    el("h3", {}, `Token ${state.token + 1} of ${to - from}`),
    el("bdi", { class: "token-text" }, visible(text, 2000)),
    el(
      "p",
      { class: "muted" },
      `id ${step().column("token")[token]}, position ${step().column("position")[token]}, probability ${percent(prob)}`,
    ),
  );
  const others = Object.keys(run().columns).filter((name) => !DATA.known_columns.includes(name));
  const blocks = Object.entries({ ...GROUPS, Other: others }).map(([title, columns]) => {
    const known = columns.filter((name) => step().isKnown(name));
    return known.length
      ? el(
          "div",
          { class: "block" },
          el("h4", {}, title),
          el("dl", {}, ...known.flatMap((name) => detail(name, token))),
        )
      : null;
  });
  drawReadout(token);
  const missing = Object.values(GROUPS)
    .flat()
    .filter((name) => !step().isKnown(name))
    .map(nameOf);
  if (missing.length)
    blocks.push(el("p", { class: "muted" }, `Not known at this step: ${missing.join(", ")}.`));
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
  const columns = [...new Set([state.colour, "value", "advantage", "kl", "strength"])].filter(
    (name) => step().isKnown(name) && !step().isText(name),
  );
  const words = columns.map((name) => ` · ${nameOf(name)} ${brief(numbers(name)[token])}`);
  byId("readout").replaceChildren(
    el("b", {}, `${state.token + 1} ${quoted(step().text("text", token) || "")}`),
    ...words,
  );
}

function detail(name, token) {
  const own = step().isText(name) ? step().text(name, token) : step().column(name)[token];
  const shown = step().isText(name)
    ? own === null
      ? "–"
      : own === ""
        ? "none"
        : visible(own)
    : format(numbers(name)[token]);
  const isMoved = !state.isOwn && CREDITED.includes(name);
  return [
    el("dt", { title: run().columns[name] }, nameOf(name)),
    el(
      "dd",
      { "data-column": name },
      isMoved ? el("span", { class: "muted" }, `run ${format(own)} → `) : null,
      shown,
    ),
  ];
}

function alternatives(token) {
  const list = el("ol", { class: "alternatives" });
  const width = step().packed.top_tokens.width;
  const ids = step().column("top_tokens"),
    probs = step().column("top_probs"),
    texts = step().column("top_texts");
  for (let i = token * width; i < (token + 1) * width; i++) {
    if (ids[i] < 0) continue;
    const isTaken = ids[i] === step().column("token")[token];
    const bar = el("span", { class: "bar" });
    bar.style.setProperty("--part", `${(100 * Math.max(0, Math.min(1, probs[i]))).toFixed(1)}%`);
    list.append(
      el(
        "li",
        { title: `id ${ids[i]}` },
        el("span", { class: "taken", "aria-label": isTaken ? "taken" : null }, isTaken ? "▸" : ""),
        bar,
        el("span", { class: "word" }, visible(texts[i] < 0 ? "" : DATA.texts[texts[i]], 60)),
        el("span", { class: "p" }, percent(probs[i])),
      ),
    );
  }
  return el("div", { class: "block" }, el("h4", {}, "Most likely here"), list);
}
