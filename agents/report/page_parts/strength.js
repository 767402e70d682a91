// Do all tokens get the same? How unequal the strength is.

const MANY_TOKENS = 4000;
let waiting = null;

/** At once where that is quick; of many tokens when the sliders have come to rest. */
function drawInequalityInTime() {
  clearTimeout(waiting);
  if (step().count <= MANY_TOKENS) drawInequality();
  else waiting = setTimeout(drawInequality, 80);
}

function drawInequality() {
  const strength = numbers("strength"),
    values = step().collected(strength, state.kind);
  const of = lorenz(values);
  const responses = step().ofKind(state.kind).length;
  const lead = byId("strength-lead");
  if (!of) {
    lead.textContent = "No token of these responses has a strength.";
    for (const id of ["lorenz", "by-position"]) byId(id).replaceChildren();
    return;
  }
  const isSame = of.gini < 0.005;
  lead.textContent = [
    `${isSame ? "Yes" : "No"}. Of ${grouped(of.n)} tokens in ${grouped(responses)} responses`,
    `(${state.kind}), the strongest tenth has ${percent(1 - of.part(0.9))} of all update strength`,
    `and the weakest half ${percent(of.part(0.5))};`,
    `Gini coefficient ${format(of.gini, 2)} (0: all the same, 1: one token has all).`,
  ].join(" ");
  drawChart(byId("lorenz"), {
    title: "Part of all strength that the weakest tokens have",
    low: 0,
    high: 1,
    isTight: true,
    formatX: (x) => `${Math.round(100 * x)} %`,
    unit: "of the tokens, the weakest first",
    height: 210,
    lines: [],
    series: [
      { label: "all the same", role: "seed", className: "reference-role", x: [0, 1], y: [0, 1] },
      { label: "part of the strength", role: "line", className: "g0", x: of.x, y: of.y },
    ],
  });
  drawByPosition(strength);
}

/** Segments of a response may begin later than at 0. */
function drawByPosition(strength) {
  const position = step().column("position");
  const ranges = step()
    .ofKind(state.kind)
    .map((i) => step().range(i));
  const longest = greatest(ranges.map(([, to]) => position[to - 1] + 1));
  const fewest = Math.min(3, ranges.length);
  const x = [],
    middle = [],
    low = [],
    high = [];
  const column = new Float64Array(ranges.length);
  for (let t = 0; t < longest; t++) {
    let n = 0;
    for (const [from, to] of ranges) {
      const at = from + t - position[from];
      if (at >= from && at < to) column[n++] = strength[at];
    }
    const here = sorted(column.subarray(0, n));
    if (here.length < fewest) continue;
    x.push(t);
    middle.push(quantile(here, 0.5));
    low.push(quantile(here, 0.25));
    high.push(quantile(here, 0.75));
  }
  drawChart(byId("by-position"), {
    title: "Strength by position",
    low: 0,
    formatX: grouped,
    xLabel: "position",
    unit: "is the position",
    height: 210,
    lines: [],
    series: [
      { label: "middle half", role: "band", className: "g0", x, y: [], low, high },
      { label: "median", role: "line", className: "g0", x, y: middle },
    ],
  });
}
