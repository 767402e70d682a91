// A chart of curves: series, bands, points, levels to hold them against, and a cross to read it by.

const HEIGHT = 190,
  LEFT = 46,
  RIGHT = 12,
  TOP = 8,
  BOTTOM = 22;
let clips = 0;

/**
 * Draw a chart into a container, again whenever its width changes; called again, another one. The
 * width is that of the container, to ask for which costs a layout.
 *
 * spec: title, series (label, role: line | seed | band | points | dots, x, y, low, high, className),
 * lines (value, label, className), marks (at, label, className), low, high, floor, xLabel, formatX,
 * unit, height, isTight.
 */
function drawChart(container, spec, width = null) {
  let box = container.firstElementChild;
  if (!box || !box.redraw) {
    box = el("div", { class: "chart" });
    container.replaceChildren(box);
    box.redraw = (pixels) => {
      box.width = pixels;
      box.replaceChildren(chartOf(box.spec, pixels), el("div", { class: "tip", hidden: "" }));
      readByCross(box, box.spec);
    };
    const widthOf = (pixels) => Math.max(220, Math.round(pixels || 330));
    box.width = widthOf(width || container.clientWidth);
    new ResizeObserver(([entry]) =>
      requestAnimationFrame(() => {
        const now = widthOf(entry.contentRect.width);
        if (entry.contentRect.width && now !== box.width) box.redraw(now); // 0: not on the screen
      }),
    ).observe(box);
  }
  box.spec = spec;
  box.redraw(box.width);
}

/** From numbers to places on the drawing. */
function scales(spec, width) {
  const height = spec.height || HEIGHT;
  const xs = spec.series.flatMap((s) => s.x);
  const ys = spec.series.flatMap((s) => (s.role === "band" ? [...s.low, ...s.high] : s.y));
  ys.push(...(spec.lines || []).map((line) => line.value));
  for (const end of [spec.low, spec.high]) if (end !== null && end !== undefined) ys.push(end);
  let [left, right] = [least(xs), greatest(xs)];
  if (spec.xFrom !== undefined) left = Math.min(left, spec.xFrom);
  if (left > 0 && left < 0.2 * right) left = 0;
  if (left === right) [left, right] = [left - 1, right + 1];
  let [low, high] = [least(ys), greatest(ys)];
  if (spec.floor !== null && spec.floor !== undefined) low = Math.max(low, spec.floor);
  if (high - low < 1e-9 * Math.max(1, Math.abs(high))) [low, high] = [low - 0.5, high + 0.5];
  const pad = spec.isTight ? 0 : 0.05 * (high - low);
  if (!(spec.low === low)) low -= pad;
  if (!(spec.high === high)) high += pad;
  return {
    left,
    right,
    low,
    high,
    height,
    x: (value) => LEFT + ((value - left) / (right - left)) * (width - LEFT - RIGHT),
    y: (value) => height - BOTTOM - ((value - low) / (high - low)) * (height - TOP - BOTTOM),
  };
}

function least(values) {
  return values.reduce((a, b) => Math.min(a, b), Infinity);
}
function greatest(values) {
  return values.reduce((a, b) => Math.max(a, b), -Infinity);
}

function chartOf(spec, width) {
  const at = scales(spec, width);
  const clip = `clip-${clips++}`;
  const root = svg("svg", {
    viewBox: `0 0 ${width} ${at.height}`,
    role: "img",
    tabindex: "0",
    "aria-label": spoken(spec),
  });
  root.append(
    svg(
      "clipPath",
      { id: clip },
      svg("rect", {
        x: LEFT - 4,
        y: 0,
        width: width - LEFT - RIGHT + 8,
        height: at.height - BOTTOM + 3,
      }),
    ),
  );
  drawAxes(root, spec, at, width);
  const curves = svg("g", { "clip-path": `url(#${clip})` });
  const order = ["band", "seed", "line", "dots", "points"];
  for (const role of order) {
    for (const series of spec.series.filter((s) => s.role === role)) drawSeries(curves, series, at);
  }
  root.append(curves);
  drawLevels(root, spec, at, width);
  drawMarks(root, spec, at, width);
  root.append(
    svg("line", { class: "cross", y1: TOP, y2: at.height - BOTTOM, visibility: "hidden" }),
  );
  return root;
}

function drawAxes(root, spec, at, width) {
  for (const value of ticks(at.low, at.high, 4)) {
    const y = at.y(value);
    root.append(
      svg("line", {
        class: value === 0 && at.low < 0 ? "axis-zero" : "gridline",
        x1: LEFT,
        x2: width - RIGHT,
        y1: y,
        y2: y,
      }),
      svg("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, brief(value)),
    );
  }
  const formatX = spec.formatX || formatTokens;
  const across = ticks(at.left, at.right, Math.max(3, Math.floor(width / 85)));
  across.forEach((value, i) => {
    const isLast = i === across.length - 1;
    root.append(
      svg(
        "text",
        {
          x: at.x(value),
          y: at.height - 6,
          "text-anchor": isLast && at.x(value) > width - 30 ? "end" : "middle",
        },
        formatX(value) + (isLast && spec.xLabel ? ` ${spec.xLabel}` : ""),
      ),
    );
  });
}

function drawSeries(root, series, at) {
  const className = series.className || "";
  const points = series.x.map((x, i) => [at.x(x), series.role === "band" ? 0 : at.y(series.y[i])]);
  if (series.role === "band") {
    const up = series.x.map((x, i) => `${at.x(x).toFixed(1)},${at.y(series.high[i]).toFixed(1)}`);
    const down = series.x.map((x, i) => `${at.x(x).toFixed(1)},${at.y(series.low[i]).toFixed(1)}`);
    root.append(
      svg("polygon", { class: `band ${className}`, points: [...up, ...down.reverse()].join(" ") }),
    );
  } else if (series.role === "line" || series.role === "seed") {
    const drawn = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
    root.append(svg("polyline", { class: `series ${series.role} ${className}`, points: drawn }));
    if (points.length === 1)
      root.append(
        svg("circle", { class: `dot ${className}`, cx: points[0][0], cy: points[0][1], r: 3 }),
      );
  } else {
    const size =
      series.role === "dots"
        ? { class: `dot small ${className}`, r: 2.6 }
        : { class: `dot ${className}`, r: 3.4 };
    for (const [cx, cy] of points) root.append(svg("circle", { ...size, cx, cy }));
  }
}

/** Dashed lines with their names: at the right, above the line where there is room. */
function drawLevels(root, spec, at, width) {
  for (const line of spec.lines || []) {
    if (line.value < at.low || line.value > at.high) continue;
    const y = at.y(line.value);
    root.append(
      svg("line", { class: `level ${line.className}`, x1: LEFT, x2: width - RIGHT, y1: y, y2: y }),
      svg(
        "text",
        {
          class: `level-text ${line.className}`,
          x: width - RIGHT,
          y: y < TOP + 14 ? y + 12 : y - 4,
          "text-anchor": "end",
        },
        `${line.label} ${brief(line.value)}`,
      ),
    );
  }
}

/** Dotted lines across, each with its words as a title. */
function drawMarks(root, spec, at, width) {
  for (const mark of spec.marks || []) {
    if (mark.at < at.left || mark.at > at.right) continue;
    const x = at.x(mark.at);
    root.append(
      svg(
        "g",
        { class: mark.className },
        svg("title", {}, visible(mark.label)),
        svg("line", { class: "alarm", x1: x, x2: x, y1: TOP, y2: at.height - BOTTOM }),
      ),
    );
  }
}

/** What a screen reader says of a chart. */
function spoken(spec) {
  const parts = spec.series
    .filter((s) => s.role !== "band" && s.role !== "seed" && s.x.length)
    .map((s) =>
      s.role === "dots"
        ? `${s.label}: ${s.x.length} points`
        : `${s.label}: from ${format(s.y[0])} to ${format(s.y.at(-1))}`,
    );
  const levels = (spec.lines || []).map((line) => `${line.label} ${format(line.value)}`);
  const marks = (spec.marks || []).map(
    (mark) => `alarm at ${(spec.formatX || grouped)(mark.at)}: ${visible(mark.label)}`,
  );
  return `${spec.title}. ${[...parts, ...levels, ...marks].join("; ")}. Arrow keys read it point by point.`;
}

/** Let the pointer and the arrow keys move a cross from point to point, with the numbers there. */
function readByCross(box, spec) {
  const [root, tip] = [box.firstChild, box.lastChild];
  const readable = spec.series.filter(
    (s) => s.role === "line" || s.role === "seed" || s.role === "points",
  );
  const places = [...new Set(readable.flatMap((s) => s.x))].sort((a, b) => a - b);
  if (!places.length) return;
  const width = root.viewBox.baseVal.width;
  const at = scales(spec, width);
  const cross = root.lastChild;
  let place = -1;
  const hide = () => {
    tip.hidden = true;
    cross.setAttribute("visibility", "hidden");
  };
  const show = (number) => {
    place = Math.max(0, Math.min(places.length - 1, number));
    const x = at.x(places[place]);
    for (const end of ["x1", "x2"]) cross.setAttribute(end, x);
    cross.setAttribute("visibility", "visible");
    const rows = readable.flatMap((s) => {
      const i = s.x.indexOf(places[place]);
      return i < 0
        ? []
        : [
            el(
              "p",
              { class: s.className },
              el("i"),
              el("span", {}, `${s.label} ${format(s.y[i])}`),
            ),
          ];
    });
    tip.replaceChildren(
      el(
        "p",
        { class: "muted" },
        `${(spec.formatX || grouped)(places[place])} ${spec.unit || "tokens"}`,
      ),
      ...rows.slice(0, 8),
    );
    tip.hidden = false;
    const share = box.clientWidth / width;
    const isRight = x * share > box.clientWidth / 2;
    tip.style.left = isRight ? "auto" : `${x * share + 8}px`;
    tip.style.right = isRight ? `${box.clientWidth - x * share + 8}px` : "auto";
  };
  root.addEventListener("pointermove", (event) => {
    const bounds = root.getBoundingClientRect();
    const x = ((event.clientX - bounds.left) / bounds.width) * width;
    let nearest = 0;
    places.forEach((value, i) => {
      if (Math.abs(at.x(value) - x) < Math.abs(at.x(places[nearest]) - x)) nearest = i;
    });
    show(nearest);
  });
  root.addEventListener("pointerleave", hide);
  root.addEventListener("blur", hide);
  root.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: places.length - 1 };
    if (event.key in steps) {
      show(steps[event.key]);
      event.preventDefault();
    }
    if (event.key === "Escape") hide();
  });
}
