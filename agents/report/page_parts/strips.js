// Strips: one number per token of a response, as bars or a line, under one another on one axis.

/** One strip. `onPoint` is told which token the pointer is over. */
class Strip {
  constructor(container, onPoint) {
    this.label = el("b");
    this.own = el("span", { class: "own" });
    this.note = el("span");
    this.head = el("div", { class: "strip-head" }, el("span", {}, this.label, this.own), this.note);
    this.more = svg("path", {});
    this.less = svg("path", { class: "bar-less" });
    this.line = svg("path", {});
    this.zero = svg("line", { class: "strip-zero", x1: 0 });
    this.cursor = svg("rect", {
      class: "strip-cursor",
      y: 0,
      width: 1,
      height: 100,
      visibility: "hidden",
    });
    this.root = svg(
      "svg",
      { preserveAspectRatio: "none", role: "img" },
      this.cursor,
      this.more,
      this.less,
      this.zero,
      this.line,
    );
    container.append(el("div", { class: "strip" }, this.head, this.root));
    this.root.addEventListener("pointermove", (event) => {
      const bounds = this.root.getBoundingClientRect();
      onPoint(
        Math.max(
          0,
          Math.min(
            this.count - 1,
            Math.floor(((event.clientX - bounds.left) / bounds.width) * this.count),
          ),
        ),
      );
    });
  }

  /**
   * Show other numbers.
   *
   * of: label, note, values, from, to (which of the values), low, high (of the axis), kind ("bars"
   * around 0, "amount" from 0, "line"), truth (values drawn as a line over bars), isOwn.
   */
  show(of) {
    this.count = of.to - of.from;
    const place = (value) =>
      96 - (92 * (Math.max(of.low, Math.min(of.high, value)) - of.low)) / (of.high - of.low || 1);
    setAttribute(this.root, "viewBox", `0 0 ${this.count} 100`);
    setText(this.label, of.label);
    setText(this.own, of.isOwn ? " · the run's" : "");
    setText(this.note, of.note);
    const known = of.values.subarray(of.from, of.to);
    setAttribute(this.root, "aria-label", `${of.label} by position, ${of.note}`);
    const isLine = of.kind === "line";
    setAttribute(this.more, "class", of.kind === "amount" ? "bar-amount" : "bar-more");
    setAttribute(this.more, "d", isLine ? "" : bars(known, (value) => value > 0, place));
    setAttribute(this.less, "d", isLine ? "" : bars(known, (value) => value < 0, place));
    const drawn = isLine ? known : of.truth ? of.truth.subarray(of.from, of.to) : null;
    setAttribute(this.line, "class", isLine ? "strip-line" : "strip-truth");
    setAttribute(this.line, "d", drawn ? steps(drawn, place) : "");
    for (const [name, value] of [
      ["x2", this.count],
      ["y1", place(0)],
      ["y2", place(0)],
    ])
      setAttribute(this.zero, name, value);
  }

  /** Mark a token. */
  mark(token) {
    this.cursor.setAttribute("visibility", token === null ? "hidden" : "visible");
    this.cursor.setAttribute("x", token || 0);
  }
}

function bars(values, isShown, place) {
  const zero = place(0).toFixed(2);
  let path = "";
  for (let i = 0; i < values.length; i++) {
    if (isShown(values[i]))
      path += `M${i + 0.08} ${zero}V${place(values[i]).toFixed(2)}h.84V${zero}z`;
  }
  return path;
}

function steps(values, place) {
  let path = "",
    isDown = false;
  for (let i = 0; i < values.length; i++) {
    const isKnown = !Number.isNaN(values[i]);
    if (isKnown) path += `${isDown ? "L" : "M"}${i} ${place(values[i]).toFixed(2)}H${i + 1}`;
    isDown = isKnown;
  }
  return path;
}

/** The ends of an axis that holds some numbers, and 0. */
function ends(...lists) {
  let low = 0,
    high = 0;
  for (const values of lists) {
    for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return low === high ? { low: 0, high: 1 } : { low, high };
}

function range(of) {
  return `${brief(of.low)} … ${brief(of.high)}`;
}
