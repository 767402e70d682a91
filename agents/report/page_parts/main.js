// The controls, and the start.

function option(value, text) {
  return el("option", { value }, text);
}

function drawRun() {
  const steps = run().steps,
    slider = byId("step");
  slider.max = steps.length - 1;
  state.step = Math.min(state.step, steps.length - 1);
  byId("meanings").replaceChildren(
    ...Object.entries(run().columns).flatMap(([name, meaning]) => [
      el("dt", {}, name),
      el("dd", {}, meaning),
    ]),
  );
  drawStep(true);
}

/** Draw a step; the response stays the same one where the step has it. */
function drawStep(isReset = false) {
  const before = { kind: state.kind, index: state.before };
  const kinds = step().kinds();
  state.kind = kinds.includes(before.kind) ? before.kind : kinds[0];
  byId("step").value = state.step;
  byId("step").setAttribute("aria-valuetext", `${grouped(step().header.step)} tokens`);
  byId("step-text").textContent =
    `${grouped(step().header.step)} tokens of training (${state.step + 1} of ${run().steps.length})`;
  byId("step-previous").disabled = state.step === 0;
  byId("step-next").disabled = state.step === run().steps.length - 1;
  byId("kind").replaceChildren(...kinds.map((kind) => option(kind, KINDS[kind])));
  byId("kind").value = state.kind;
  if (isReset) Object.assign(state, ownSettings(step().header));
  drawKind(before.index);
}

function drawKind(index) {
  const places = step().ofKind(state.kind);
  byId("response").replaceChildren(
    ...places.map((i) => {
      const of = step().responses[i];
      return option(
        i,
        `${of.index}: ${format(of.score, 3)}  ${visible(DATA.texts[of.response], 46)}`,
      );
    }),
  );
  const same = places.find((i) => step().responses[i].index === index);
  state.response = same === undefined ? places[0] : same;
  drawColours();
  showResponse();
}

function drawColours() {
  const of = step();
  const others = Object.keys(run().columns).filter(
    (name) => !DATA.known_columns.includes(name) && of.packed[name] && !of.isText(name),
  );
  byId("colour").replaceChildren(
    ...Object.entries({ ...GROUPS, Other: others })
      .map(([title, columns]) => {
        const known = columns.filter((name) => of.isKnown(name));
        return known.length
          ? el("optgroup", { label: title }, ...known.map((name) => option(name, nameOf(name))))
          : null;
      })
      .filter(Boolean),
  );
  if (!of.isKnown(state.colour)) state.colour = "reward";
  byId("colour").value = state.colour;
}

/** Draw everything of the response that `state` names. */
function showResponse() {
  const places = step().ofKind(state.kind),
    place = places.indexOf(state.response);
  state.before = response().index;
  byId("response").value = state.response;
  byId("response-previous").disabled = place === 0;
  byId("response-next").disabled = place === places.length - 1;
  byId("history-panel").hidden = state.kind !== "fixed" || run().steps.length < 2;
  computeCredit();
  state.colouring = null;
  drawResponse();
  paint();
  drawCredit();
  choose(state.token);
}

function choosePointed(token) {
  if (token !== state.token) choose(token);
}

function listen() {
  const on = (id, event, action) => byId(id) && byId(id).addEventListener(event, action);
  on("run", "change", (event) => {
    state.run = +event.target.value;
    drawRun();
  });
  on("step", "input", (event) => {
    state.step = +event.target.value;
    drawStep();
  });
  on("step-previous", "click", () => {
    state.step -= 1;
    drawStep();
  });
  on("step-next", "click", () => {
    state.step += 1;
    drawStep();
  });
  on("kind", "change", (event) => {
    state.kind = event.target.value;
    drawKind();
  });
  on("response", "change", (event) => {
    state.response = +event.target.value;
    showResponse();
  });
  const neighbour = (by) => {
    const places = step().ofKind(state.kind);
    state.response = places[places.indexOf(state.response) + by];
    showResponse();
  };
  on("response-previous", "click", () => neighbour(-1));
  on("response-next", "click", () => neighbour(1));
  for (const name of ["colour", "scale"]) {
    on(name, "change", (event) => {
      state[name] = event.target.value;
      state.colouring = null;
      paint();
      drawDetails();
      if (!byId("history-panel").hidden) drawHistory();
    });
  }
  for (const name of ["gamma", "lambda"]) {
    for (const id of [name, `${name}-number`]) {
      on(id, "input", (event) => {
        const value = event.target.value === "" ? NaN : +event.target.value;
        if (!(value >= 0 && value <= 1)) return;
        state[name] = value;
        moveCredit();
      });
      on(id, "change", () => {
        byId(id).value = state[name];
      });
    }
  }
  on("lambda-kind", "change", (event) => chooseLambda(event.target.value));
  on("alpha", "input", (event) => {
    if (!(+event.target.value > 0 && Number.isFinite(+event.target.value))) return;
    state.alpha = +event.target.value;
    moveCredit();
  });
  on("alpha", "change", () => {
    byId("alpha").value = state.alpha;
  });
  const preset = (lambda) => {
    Object.assign(state, lambda === null ? ownSettings(step().header) : { lambda, alpha: null });
    moveCredit();
  };
  on("preset-run", "click", () => preset(null));
  on("preset-td", "click", () => preset(0));
  on("preset-mc", "click", () => preset(1));
  const chips = byId("chips");
  const tokenOf = (event) => event.target.closest(".chip")?.dataset.token;
  chips.addEventListener("pointerover", (event) => {
    if (tokenOf(event) !== undefined) choosePointed(+tokenOf(event));
  });
  chips.addEventListener("click", (event) => {
    if (tokenOf(event) !== undefined) choose(+tokenOf(event), true);
  });
  chips.addEventListener("focusin", (event) => {
    if (tokenOf(event) !== undefined) choosePointed(+tokenOf(event));
  });
  chips.addEventListener("keydown", (event) => {
    const token = tokenByKey(event.key);
    if (token === null) return;
    event.preventDefault();
    choose(token, true);
  });
}

function start() {
  drawCurves();
  state.run = RUNS.findIndex((of) => of.steps.length);
  if (state.run >= 0) {
    state.step = run().steps.length - 1;
    state.strips = [0, 1, 2, 3].map(() => new Strip(byId("strips"), choosePointed));
    state.estimators = [];
    if (byId("run")) {
      byId("run").append(
        ...RUNS.map((of, i) => (of.steps.length ? option(i, visible(of.name)) : null)).filter(
          Boolean,
        ),
      );
      byId("run").value = state.run;
    }
    listen();
    drawRun();
  }
  document.documentElement.dataset.ready = "yes";
  performance.mark("ready");
}

try {
  start();
} catch (error) {
  byId("error").hidden = false;
  byId("error").textContent = `The page could not be drawn: ${error.message}`;
  throw error;
}

// For tests, and for whoever wants the numbers from the console.
window.tokenrlhf = {
  state,
  numbers,
  span,
  step: () => step(),
  run: () => run(),
  correlation,
  lorenz,
};
