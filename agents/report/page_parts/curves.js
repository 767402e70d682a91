// The summary's charts.

function drawCurves() {
  const grids = { curves: byId("curve-grid"), reward: byId("reward-grid") };
  const isAlone = DATA.runs.length === 1;
  const holders = DATA.charts.map(() => el("div"));
  DATA.charts.forEach((chart, i) => {
    const holder = holders[i];
    const line =
      chart.series.find((s) => s.role === "line" && s.x.length) ||
      chart.series.find((s) => s.x.length);
    const last = line && line.y.length && !chart.over ? `at last ${brief(line.y.at(-1))}` : "";
    grids[chart.section].append(
      el(
        "figure",
        { class: "panel chart-panel", "data-chart": chart.name },
        el(
          "figcaption",
          {},
          el("span", {}, chart.title),
          isAlone ? el("span", { class: "last" }, last) : null,
        ),
        holder,
        chart.over ? ownLegend(chart, isAlone) : null,
        chart.notes.length ? el("p", { class: "muted" }, chart.notes.join("; ")) : null,
      ),
    );
  });
  const widths = holders.map((holder) => holder.clientWidth); // all at once: one layout
  DATA.charts.forEach((chart, i) => {
    drawChart(
      holders[i],
      {
        ...chart,
        xFrom: 0,
        formatX: chart.over ? brief : undefined,
        xLabel: chart.over,
        series: chart.series.map((s) => ({
          ...s,
          className: classOf(s, isAlone),
        })),
        lines: chart.lines.map((of) => ({
          ...of,
          className:
            isAlone || of.group === null || DATA.groups.length === 1
              ? `${of.role}-role`
              : `g${of.group % 8}`,
        })),
        marks: (chart.marks || []).map((mark) => ({
          ...mark,
          className: isAlone ? "alarm-role" : `g${mark.group % 8}`,
        })),
      },
      widths[i],
    );
  });
  if (!DATA.charts.some((chart) => chart.section === "curves"))
    grids.curves.append(el("p", { class: "notice" }, "No update has been logged yet."));
  drawLegend(isAlone);
  document
    .querySelectorAll(".length-chart")
    .forEach((box) => drawLengths(box, DATA.lengths[box.dataset.run]));
}

function classOf(series, isAlone) {
  return isAlone && series.role === "points" ? "held-out" : `g${series.group % 8}`;
}

/** What the lines and points of a chart are that is not over the training. */
function ownLegend(chart, isAlone) {
  const named = chart.series.filter((s) => s.role === "line" || s.role === "points");
  const swatch = (s) =>
    svg(
      "svg",
      { viewBox: "0 0 26 12", "aria-hidden": "true" },
      s.role === "line"
        ? svg("line", { class: `series line ${classOf(s, isAlone)}`, x1: 1, x2: 25, y1: 6, y2: 6 })
        : svg("circle", { class: "dot", cx: 13, cy: 6, r: 4 }),
    );
  const entries = named.map((s) =>
    el("li", { class: classOf(s, isAlone) }, swatch(s), el("span", {}, visible(s.label))),
  );
  return el("ul", { class: "legend" }, ...entries);
}

function drawLegend(isAlone) {
  const legend = byId("curve-legend");
  const entry = (className, label, mark) =>
    legend.append(el("li", { class: className }, mark, el("span", {}, label)));
  const stroke = (name) =>
    svg(
      "svg",
      { viewBox: "0 0 26 12", "aria-hidden": "true" },
      svg("line", { class: name, x1: 1, x2: 25, y1: 6, y2: 6 }),
    );
  const dot = () =>
    svg(
      "svg",
      { viewBox: "0 0 26 12", "aria-hidden": "true" },
      svg("circle", { class: "dot", cx: 13, cy: 6, r: 4 }),
    );
  if (isAlone) {
    entry("g0", "training samples", stroke("series"));
    const isDotted = (c) => c.series.some((s) => s.role === "points" && s.x.length);
    if (DATA.charts.some((c) => c.section === "curves" && isDotted(c)))
      entry("held-out", "held-out prompts", dot());
  } else {
    DATA.groups.forEach((group, i) =>
      entry(
        `g${i % 8}`,
        group.seeds > 1
          ? `${visible(group.label)}: mean of ${group.seeds} seeds, and their range`
          : visible(group.label),
        stroke("series"),
      ),
    );
  }
  const roles = new Set(DATA.charts.flatMap((c) => c.lines.map((line) => line.role)));
  if (roles.has("reference"))
    entry("reference-role", "untrained model, or a target", stroke("level"));
  if (roles.has("optimum")) entry("optimum-role", "optimum", stroke("level"));
  if (DATA.charts.some((c) => (c.marks || []).length))
    entry(isAlone ? "alarm-role" : "", "alarm (across)", stroke("alarm"));
}

/** Score against length, before and after. */
function drawLengths(box, lengths) {
  if (!lengths) return;
  const colours = lengths.series.length > 1 ? ["reference-role", "g0"] : ["g0"];
  const holder = el("div");
  const legend = el(
    "ul",
    { class: "legend" },
    ...lengths.series.map((s, i) =>
      el(
        "li",
        { class: colours[i] },
        svg(
          "svg",
          { viewBox: "0 0 26 12", "aria-hidden": "true" },
          svg("circle", { class: "dot small", cx: 13, cy: 6, r: 4 }),
        ),
        el("span", {}, `${s.label}: ${s.x.length} responses, r = ${format(s.r, 2)}`),
      ),
    ),
  );
  box.append(
    el(
      "figure",
      { class: "panel chart-panel" },
      el("figcaption", {}, `score against length in ${lengths.unit}`),
      holder,
      legend,
    ),
  );
  drawChart(holder, {
    title: `Score against length in ${lengths.unit}`,
    unit: lengths.unit,
    xLabel: lengths.unit,
    formatX: grouped,
    lines: [],
    series: lengths.series.map((s, i) => ({ ...s, role: "dots", className: colours[i] })),
  });
}
