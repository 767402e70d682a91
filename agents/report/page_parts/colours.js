// What the ground of a token means.

/** How a column is coloured: around which centre, on one side or both, up to which distance. */
function colouring(column) {
  const centre = column === "ratio" ? 1 : 0;
  const from =
    state.scale === "response"
      ? [
          step()
            .column(column)
            .subarray(...span()),
        ]
      : (state.scale === "training" ? run().steps : [step()])
          .filter((s) => s.packed[column])
          .map((s) => s.collected(s.column(column), state.kind));
  // The run's own numbers set the scale, so that it stays where it is while γ and λ move.
  const distances = new Float64Array(from.reduce((sum, values) => sum + values.length, 0));
  let at = 0,
    low = Infinity,
    high = -Infinity;
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
  return {
    centre,
    isSigned,
    isBelow: !isSigned && high <= centre,
    cap: cap > 0 && cap < Infinity ? cap : 1,
  };
}

/** Give every token of the response its ground. */
function paint() {
  const [from] = span();
  const chips = byId("chips").querySelectorAll(".chip");
  if (state.colour === "clip") {
    chips.forEach((chip, i) =>
      paintChip(
        chip,
        ["high", "low", "neither"].includes(clipOf(from + i)) ? clipOf(from + i) : "unknown",
      ),
    );
    return drawLegendOfClips();
  }
  const values = numbers(state.colour);
  if (!state.colouring) state.colouring = colouring(state.colour);
  const { centre, isSigned, cap } = state.colouring;
  chips.forEach((chip, i) => {
    const value = values[from + i],
      distance = Math.min(1, Math.abs(value - centre) / cap);
    if (Number.isNaN(value)) paintChip(chip, "unknown");
    else
      paintChip(
        chip,
        (isSigned ? (value < centre ? "less" : "more") : "amount") +
          (distance > 0.04 ? " marked" : ""),
        distance,
      );
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
    el(
      "span",
      { class: "ramp-box" },
      `${isSigned ? "≤ " : ""}${brief(low)}`,
      el("span", { class: `ramp ${isSigned ? "signed" : "one-way"}` }),
      `${isBelow ? "≤" : "≥"} ${brief(high)}`,
    ),
    ...(isSigned ? [el("span", {}, `line above: more than ${centre}, below: less`)] : []),
    el("span", { class: "unknown-key" }, el("span", { class: "swatch chip unknown" }), "not known"),
  );
}

function drawLegendOfClips() {
  const entry = (name, words) =>
    el("span", {}, el("span", { class: `swatch chip ${name}` }), words);
  byId("legend").replaceChildren(
    el("b", {}, "clip"),
    entry("high", "ratio too high: no gradient"),
    entry("low", "ratio too low: no gradient"),
    entry("neither", "not clipped"),
    entry("unknown", "in no update"),
  );
}
