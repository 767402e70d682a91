// The data of the page, unpacked when it is asked for.

const DATA = JSON.parse(byId("data").textContent);

const ARRAYS = {
  i1: Int8Array,
  i2: Int16Array,
  i4: Int32Array,
  f4: Float32Array,
  f8: Float64Array,
};

/** A column as an array: `width` entries per token, texts by their number (−1: null). */
function unpack(packed, count) {
  const size = count * packed.width;
  if (!("data" in packed)) {
    return new Float64Array(size).fill(packed.all === null ? NaN : packed.all);
  }
  const characters = atob(packed.data);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return new ARRAYS[packed.type](bytes.buffer);
}

/** The token tables of one step: columns of all its responses, one after another. */
class Step {
  constructor(packed) {
    this.header = packed.header;
    this.responses = packed.responses;
    this.packed = packed.columns;
    this.starts = [0];
    for (const response of this.responses) this.starts.push(this.starts.at(-1) + response.tokens);
    this.count = this.starts.at(-1);
    this.columns = new Map();
  }

  /** A column of all tokens. */
  column(name) {
    if (!this.columns.has(name)) this.columns.set(name, unpack(this.packed[name], this.count));
    return this.columns.get(name);
  }

  /** Whether anything is known in a column. */
  isKnown(name) {
    const packed = this.packed[name];
    return packed !== undefined && ("data" in packed || packed.all !== null);
  }

  isText(name) {
    return this.packed[name].is_text;
  }

  /** Text of a token in a column of texts; null where there is none. */
  text(name, token) {
    const number = this.column(name)[token];
    return number >= 0 ? DATA.texts[number] : null;
  }

  /** The places of the responses of a kind. */
  ofKind(kind) {
    return this.responses.map((_, i) => i).filter((i) => this.responses[i].kind === kind);
  }

  kinds() {
    return [...new Set(this.responses.map((response) => response.kind))];
  }

  /** Whether anything is known of the responses of a kind. */
  isKnownOf(values, kind) {
    return this.ofKind(kind).some((i) =>
      values.subarray(...this.range(i)).some((value) => !Number.isNaN(value)),
    );
  }

  /** What is one number for a whole response, for each of its tokens; null becomes NaN. */
  uniform(name) {
    this.uniforms = this.uniforms || {};
    if (!this.uniforms[name]) {
      const all = new Float64Array(this.count);
      this.responses.forEach((response, i) => {
        const value = response.uniform[name];
        all.fill(value === null ? NaN : value, ...this.range(i));
      });
      this.uniforms[name] = all;
    }
    return this.uniforms[name];
  }

  /** The first token of a response and the one after its last. */
  range(response) {
    return [this.starts[response], this.starts[response + 1]];
  }

  /** A column of the responses of a kind, which stand together only by chance. */
  collected(values, kind) {
    if (this.responses.every((response) => response.kind === kind)) return values;
    const parts = this.ofKind(kind).map((i) => values.subarray(...this.range(i)));
    const all = new Float64Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      all.set(part, at);
      at += part.length;
    }
    return all;
  }
}

const RUNS = DATA.runs.map((run) => ({ ...run, steps: run.steps.map((step) => new Step(step)) }));

const FINISHES = {
  stop: "ended by itself",
  length: "reached the limit",
  cut: "cut by the rollout's end",
};
const KINDS = {
  fresh: "fresh: new ones to held-out prompts",
  fixed: "fixed: the same ones at every step",
  rollout: "rollout: used in the last update",
};

/**
 * γ, λ and α of a run's estimator; α is that of a λ by the length of the response, null where it is
 * one number. Without a critic there is none, and 1 and 1 add up the rewards.
 */
function ownSettings(header) {
  const lambdas = { gae: header.gae_lambda, "monte-carlo": 1, td: 0 };
  if (!(header.estimator in lambdas))
    return { gamma: 1, lambda: 1, alpha: null, isCriticFree: true };
  const alpha = header.estimator === "gae" ? (header.gae_lambda_alpha ?? null) : null;
  return { gamma: header.gamma, lambda: lambdas[header.estimator], alpha, isCriticFree: false };
}

/** λ of a response of that many tokens: α's where there is an α, else λ itself. */
function lambdaOf(length, lambda, alpha) {
  return alpha === null ? lambda : lambdaByLength(length, alpha);
}

/** V of every token for the recursion: 0 where there is no critic. */
function valuesOf(step) {
  const values = step.column("value");
  return step.isKnown("value") ? values : new Float64Array(values.length);
}

/** Rewards as they enter the advantages. */
function rewardsOf(step) {
  const { factor, shift } = step.header.reward_scale;
  return Float64Array.from(step.column("reward"), (reward) => factor * reward + shift);
}

/** δ and A of all tokens of a step, at a γ and a λ, or the λ by length of an α. */
function advantagesAt(step, gamma, lambda, alpha = null) {
  step.rewards = step.rewards || rewardsOf(step);
  step.values = step.values || valuesOf(step);
  const delta = new Float64Array(step.count),
    advantage = new Float64Array(step.count);
  step.responses.forEach((response, i) => {
    const [from, to] = step.range(i);
    const bootstrap = step.isKnown("value") ? response.bootstrap_value : 0;
    generalizedAdvantages(
      step.rewards,
      step.values,
      from,
      to,
      bootstrap,
      gamma,
      lambdaOf(to - from, lambda, alpha),
      delta,
      advantage,
    );
  });
  return { delta, advantage };
}

/** What each token counts in the loss: the file's weight beside whitened advantage × ratio; 1 where it is 0. */
function aggregation(step) {
  const weight = step.column("weight"),
    whitened = step.column("whitened"),
    ratio = step.column("ratio");
  return weight.map((value, i) => {
    const plain = whitened[i] * (Number.isNaN(ratio[i]) ? 1 : ratio[i]);
    return value !== 0 && plain !== 0 ? value / plain : 1;
  });
}

/** Everything that γ and λ change, of all tokens of a step. */
function credit(step, gamma, lambda, alpha) {
  const { delta, advantage } = advantagesAt(step, gamma, lambda, alpha);
  const { mean, deviation } = step.header.whitening || { mean: 0, deviation: 1 };
  const whitened = advantage.map((value) => (value - mean) / deviation);
  const returns = advantage.map((value, i) => value + step.values[i]);
  const ratio = step.column("ratio"),
    counts = aggregation(step),
    norm = step.column("gradient_norm");
  const range = step.header.clip_range;
  const high = step.header.clip_range_high ?? range;
  const weight = new Float64Array(step.count),
    strength = new Float64Array(step.count);
  for (let i = 0; i < step.count; i++) {
    const hasRatio = !Number.isNaN(ratio[i]);
    const isClipped = hasRatio && (whitened[i] > 0 ? ratio[i] > 1 + high : ratio[i] < 1 - range);
    weight[i] = isClipped ? 0 : counts[i] * whitened[i] * (hasRatio ? ratio[i] : 1);
    strength[i] = Math.abs(weight[i]) * norm[i];
  }
  return { delta, advantage, whitened, return: returns, weight, strength };
}
