// What is shown: `state` says it, and everything is drawn from that.

const state = {
  run: 0,
  step: 0,
  kind: null,
  response: 0,
  token: 0,
  colour: "whitened",
  scale: "step",
  gamma: 1,
  lambda: 1,
  alpha: null,
  isOwn: true,
  credit: null,
};

/** What γ and λ change. */
const CREDITED = ["delta", "advantage", "whitened", "return", "weight", "strength"];

const GROUPS = {
  Credit: ["whitened", "advantage", "true_advantage", "delta", "value", "return"],
  Reward: ["reward", "reward_score", "reward_kl", "reward_reference", "reward_actor"],
  Policy: ["log_prob", "ref_log_prob", "kl", "full_kl", "entropy"],
  Update: [
    "weight",
    "strength",
    "share",
    "exact_strength",
    "exact_share",
    "ratio",
    "clip",
    "value_loss",
    "entropy_bonus",
    "kl_loss",
  ],
};

const NAMES = {
  whitened: "whitened advantage",
  advantage: "advantage A",
  true_advantage: "true advantage",
  delta: "δ",
  value: "V",
  return: "return",
  reward: "reward r",
  reward_score: "of the score",
  reward_kl: "of the KL",
  reward_reference: "β·log π_ref",
  reward_actor: "−β·log π",
  log_prob: "log π",
  ref_log_prob: "log π_ref",
  kl: "sampled KL",
  full_kl: "full KL",
  entropy: "entropy",
  weight: "weight w",
  strength: "strength",
  share: "share",
  exact_strength: "exact strength",
  exact_share: "exact share",
  ratio: "ratio",
  clip: "clip",
  value_loss: "value loss",
  entropy_bonus: "entropy bonus",
  kl_loss: "KL loss",
};

/** Which are shown on both sides of 0 (the ratio: of 1), even where all are on one side. */
const SIGNED = new Set([
  ...GROUPS.Credit,
  ...GROUPS.Reward.slice(0, 3),
  "kl",
  "weight",
  "share",
  "exact_share",
  "ratio",
]);

function nameOf(column) {
  return NAMES[column] || column;
}
function run() {
  return RUNS[state.run];
}
function step() {
  return run().steps[state.step];
}
function response() {
  return step().responses[state.response];
}
function span() {
  return step().range(state.response);
}

/** A column of the step, as γ and λ have it now. */
function numbers(column) {
  return !state.isOwn && CREDITED.includes(column) ? state.credit[column] : step().column(column);
}
