"""The typed settings of `tokenrlhf train`; every field's text is its `--help`.

Importing this loads neither torch nor transformers, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agents.settings import (
    DEFAULT_DUAL_RATE,
    DEFAULT_HORIZON,
    DEFAULT_LAMBDA,
    PPO_CHOICES,
    PPO_RANGES,
    KLPenalty,
    check_agent,
    check_controller,
    check_estimator,
    check_train_settings,
    kl_controller,
    run_name,
    settings_from_json,
)
from tokenenv.addresses import names_server
from tokenenv.data import parse_columns
from tokenenv.maths import CRITIC_FREE
from tokenenv.tasks import names_code

__all__ = ["TrainConfig"]

_BUFFER_SETTINGS = (
    *("advantage_estimator", "group_size", "whiten_rewards"),
    *("gae_lambda_value", "gae_lambda_alpha", "vine_samples"),
)
"""Keys of the rollout buffer's arguments, besides `cut`; those that are None are left out."""


SETTINGS_OF_OLDER_RUNS: dict[str, Any] = {
    **dict.fromkeys(("config", "seeds", "reward_weights", "tracker")),
    **dict.fromkeys(("lora_rank", "lora_alpha", "lora_target_modules")),
    **{"critic_epochs": None, "lr_schedule": "linear"},
    **{"gradient_checkpointing": False, "optimizer": "adam", "prompt_truncation": "error"},
    **{"tracker_project": "tokenrlhf", "max_skipped_updates": 0},
    **{"columns": (), "skip_bad": False},
    **{"on_hacking_alarm": "ignore", "hacking_kl_factor": 2.0, "hacking_kl_raises": 3},
    **{"resume": None, "trust_code": False, "keep_checkpoints": None},
    **{"combine": None, "uncertainty_coef": None, "shift_every": 0, "shift_pairs": None},
    **{"refresh_every": 0, "refresh_pairs": 256, "refresh_labels": None},
    **{"refresh_label_noise": 0.0, "refresh_old_pairs": None},
    **{"refresh_epochs": 2, "refresh_learning_rate": 3e-4},
    **{"launcher": None, "workers": None, "sweep": ()},
    **{"shard_actor": False, "check_ranks_every": 16},
}
"""What runs did before these were settings: their config.json need not name them."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a language model with PPO in the token environment; the defaults train `reviews`."""

    config: Path | None = None
    """File of settings, YAML or JSON; the config.json of a run; or zoo:NAME, settings that were
    tuned (`tokenrlhf zoo` lists them). Options here override it."""
    out: Path | None = None
    """Folder of the run; runs/NAME-DATE-TIME unless given, named after task, model and prompts."""
    resume: Path | None = None
    """Folder of a run that was stopped: it goes on from its newest checkpoint, with its settings,
    to what it would have come to. --total-tokens may be more than it had."""
    trust_code: bool = False
    """Allow a run that is resumed to name code to import ('module:attribute'), or a reward server
    that texts are sent to ('http://…')."""
    overwrite: bool = False
    """Write into a run folder that exists already, replacing the run in it."""
    seed: int = 0
    """Seed of prompts, sampling and order of the updates."""
    seeds: int | None = None
    """Train so many times, with seeds from --seed on, and report interquartile means."""
    sweep: tuple[str, ...] = ()
    """Settings with several values, learning_rate=1e-3,3e-4: every combination of them is trained
    with every seed."""
    launcher: Literal["local", "ray"] | None = None
    """What trains the seeds and the sweep: processes of this machine, or tasks of ray. The same
    command again goes on with what is missing. Default: one run after the other in this process;
    'local' for a sweep."""
    workers: int | None = None
    """Runs side by side, with --launcher; default: one per core, or what ray has."""
    total_tokens: int = 65_536
    """Response tokens to train on."""

    task: str = "reviews"
    """Bundled task, or 'package.module:TASK'; it fills the fields that are None."""
    actor: str | None = None
    """Folder or hub id of the model to train; a copy of the reference unless given."""
    reference: str | None = None
    """Folder or hub id of the frozen reference."""
    reward_model: str | tuple[str, ...] | None = None
    """Folder or hub id of a reward model, folder of an ensemble, 'package.module:function', or the
    address of a reward server, 'http://HOST:PORT' (docs/reward-servers.md); or several of them,
    which --combine makes one reward of."""
    reward_weights: tuple[float, ...] | None = None
    """Weights of several rewards, one for each; 1 each unless given."""
    combine: Literal["sum", "mean", "min", "uncertainty"] | None = None
    """How several rewards become one: their weighted sum; or, of reward models alone, their mean,
    the worst of them, or mean - c·standard deviation, each normalised on the same responses of the
    reference, and the combination as well. Default: 'sum', or 'mean' for an ensemble's folder."""
    uncertainty_coef: float | None = None
    """The number c of --combine uncertainty; default: 1."""
    prompts: str | None = None
    """File of prompts (JSON Lines, CSV, Parquet, text, …: docs/data.md), or the name of a task."""
    prompt_truncation: Literal["error", "keep-end", "drop"] = "error"
    """What is done with prompts of more than P tokens: refuse them, cut their beginnings off (but
    for BOS), or leave them out."""
    columns: tuple[str, ...] = ()
    """What columns of the file of prompts mean and their names in it: prompt=question
    answer=solution; rewards ask for columns by what they mean."""
    skip_bad: bool = False
    """Go on without the rows of that file that can't be used, and say how many they are."""
    max_prompt_tokens: int | None = None
    """Longest prompt, P."""
    max_new_tokens: int | None = None
    """Longest response, T."""
    kl_coef: float | None = None
    """β, the weight of the KL penalty."""
    kl_estimator: Literal["k1", "k2", "k3", "full"] = "k1"
    """Estimator of the KL per token: from the sampled token alone (k1, k2, k3), or the exact sum
    over the vocabulary (full)."""
    use_kl_loss: bool = False
    """Add the KL to the loss and differentiate it, instead of subtracting it from the reward; not
    for k1. Where advantages are whitened, it is divided by their standard deviation as well."""
    kl_controller: Literal["fixed", "adaptive", "dual"] = "fixed"
    """What moves β after every rollout: nothing, Ziegler et al.'s controller, dual ascent in log β.
    The last two start from a positive β."""
    kl_target: float | None = None
    """KL per response, in nats, that an adaptive or dual controller steers to."""
    kl_horizon: float = DEFAULT_HORIZON
    """Episodes in which the adaptive controller changes β by a fifth, at the most."""
    kl_dual_rate: float = DEFAULT_DUAL_RATE
    """Step of the dual controller in log β per rollout whose KL is twice the target."""
    temperature: float = 1.0
    """Temperature of sampling, and of the reference's log-probabilities."""
    score_clip: float | None = None
    """Clip normalised scores to ± this."""
    missing_eos_penalty: float = 0.0
    """Subtracted from the score of a response without EOS."""
    scoring: Literal["deferred", "step"] = "deferred"
    """Score whole rollouts at once (fast), or at every step (the same rewards)."""

    n_envs: int = 64
    """Episodes side by side; of several processes together."""
    n_steps: int = 32
    """Steps per environment and rollout."""
    batch_size: int = 512
    """Tokens per minibatch, approximately: sequences are not split."""
    micro_batch_tokens: int | None = None
    """Tokens per forward and backward; less memory, same result."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Precision of the update's forward and backward passes; 'auto' measures which is faster."""
    n_epochs: int = 4
    """Passes over every rollout."""
    learning_rate: float = 3e-4
    """Learning rate of Adam, at the start."""
    lr_schedule: Literal["linear", "cosine", "cubic", "constant"] = "linear"
    """How the learning rate falls to 0 until after the last update: linearly, late (cosine), early
    (cubic: half of it is gone after a fifth of the training), or not at all."""
    gamma: float = 1.0
    """Discount factor γ."""
    advantage_estimator: Literal[
        "gae", "monte-carlo", "td", "rloo", "group", "reinforce", "vine"
    ] = "gae"
    """How rewards become advantages. With a critic: 'gae', and its ends 'monte-carlo' (λ = 1) and
    'td' (λ = 0). Without one: 'rloo' (minus the mean of the other responses to the prompt), 'group'
    (standardised among them, as GRPO), 'reinforce' (minus the mean of the batch) and 'vine' (values
    from continuations of every state)."""
    group_size: int = 1
    """Responses to every prompt; 'rloo' and 'group' compare them and need 2 or more."""
    whiten_rewards: bool = False
    """Scale the rewards of an update to standard deviation 1 about their mean, as TRL does. This
    adds mean·(1 - 1/deviation) to the reward of every token, which changes the optimal length of
    responses. Not for estimators without a critic."""
    gae_lambda: float = DEFAULT_LAMBDA
    """λ of generalised advantage estimation; only for 'gae'."""
    gae_lambda_value: float | None = None
    """λ of the returns that the critic learns; that of the advantages unless given."""
    gae_lambda_alpha: float | None = None
    """Makes λ of the length l of a response instead: 1 - 1/(α·l), within 0 to 1. VAPO has α = 0.05,
    where λ is 0 up to 20 tokens. Only for 'gae', and with --cut carry, the default then."""
    vine_samples: int | None = None
    """Continuations that 'vine' samples of every state; default: 9. Their tokens are not counted in
    --total-tokens, but as rlhf/vine_tokens."""
    clip_range: float = 0.2
    """Clip range of the probability ratio."""
    clip_range_high: float | None = None
    """Clip range of a ratio above 1, as DAPO has it; as --clip-range unless given."""
    clip_range_vf: float | None = 0.2
    """Clip range of the change of a value, in standard deviations of the returns where they are
    normalised; None: no clipping."""
    normalize_returns: bool | None = None
    """Divide the returns that the critic learns by their running standard deviation; None: if there
    is a critic. Without it, the critic's learning speed and the effect of its clip depend on the
    scale of the scores."""
    whiten_advantages: bool = True
    """Whiten advantages over the whole rollout."""
    loss_aggregation: Literal["token", "sequence", "constant"] = "token"
    """How the policy's loss, entropy bonus and KL loss are summed up over a minibatch: the mean
    over its tokens, the mean over its sequences of the mean over their tokens, or the mean over its
    sequences of the sum over their tokens divided by a constant (Dr. GRPO)."""
    loss_divisor: int | None = None
    """Tokens that 'constant' divides by; default: T, the longest response that is allowed."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    vf_coef: float | None = None
    """Weight of the value loss; default: 0.1, or 0 where the estimator needs no critic."""
    max_grad_norm: float = 1.0
    """Clip gradients to this norm."""
    target_kl: float | None = None
    """Stop an update early where its approximate KL exceeds 1.5 times this."""
    value_head: Literal["shared", "separate"] = "shared"
    """The critic: a linear head on the actor's trunk, or a model with a separate trunk."""
    critic: str = "actor"
    """Initial weights of a separate critic: 'actor', 'reward_model', or a folder."""
    critic_warmup: int = 0
    """Number of updates at the start in which only the critic learns."""
    critic_warmup_lambda: float | None = None
    """λ of the critic's targets in these updates, 1 for Monte-Carlo returns (exact ones with --cut
    carry); as later unless given."""
    critic_epochs: int | None = None
    """Passes over a rollout, of --n-epochs, in which a separate critic learns; all unless given."""
    max_skipped_updates: int = 2
    """Updates in a row that are left out where rewards, loss or gradient are not finite; one more
    ends the run. Each batch is kept in the run's folder skipped/, the last three."""
    lora_rank: int | None = None
    """Train low-rank adapters (LoRA) of this rank instead of all weights. Actor and reference then
    share one copy of the weights; the run keeps the adapter and the merged model."""
    lora_alpha: float | None = None
    """α of the adapters, ΔW = (α/rank)·B·A; twice the rank unless given."""
    lora_target_modules: tuple[str, ...] | None = None
    """Names of the linear layers that get adapters; those that peft has for the architecture unless
    given, else those of attention."""
    gradient_checkpointing: bool = False
    """Compute the activations of layers again in the backward pass instead of keeping them: less
    memory, more time, same result."""
    optimizer: Literal["adam", "adamw", "sgd", "adagrad"] = "adam"
    """Torch's optimiser, in one kernel. AdamW also decays the weights by 0.01 times the rate."""
    cut: Literal["bootstrap", "carry"] | None = None
    """What happens to episodes that the end of a rollout cuts: 'bootstrap' uses them at once with
    the critic's value, 'carry' keeps them for the update after their end. Default: 'carry' for
    estimators without a critic and with --gae-lambda-alpha, else 'bootstrap'."""

    eval_prompts: int = 64
    """Held-out prompts that J, J_ref and the bound on J* are measured on."""
    eval_responses: int | None = None
    """Responses for each of them at the end, half the policy's, half the reference's; 0: no
    evaluation. Default: 256, or as many as cost no more than the training, which is said."""
    eval_every: int = 8
    """Updates between two quick evaluations of J during training; 0 for none."""
    explain_every: int = 8
    """Updates between two token tables (tokens/STEP.jsonl), which `report` and `explain` read; 0
    for none."""
    explain_prompts: int = 8
    """Held-out prompts in a token table."""
    on_hacking_alarm: Literal["ignore", "warn", "stop", "raise-kl"] = "warn"
    """What happens where the run looks like reward hacking, by rules that know no gold reward
    (docs/reward-models.md): nothing, as nobody looks; a warning; the end of the training, with its
    evaluation; or a warning and a larger β."""
    hacking_kl_factor: float = 2.0
    """What 'raise-kl' multiplies β by, at the alarm and for as long as it goes on."""
    hacking_kl_raises: int = 3
    """How often it does so, at the most."""
    shift_every: int = 0
    """Updates between two tests whether the policy's responses are still like those that the reward
    model knows (rlhf/shift, rlhf/shift_p); 0 for none."""
    shift_pairs: str | None = None
    """File of the preference pairs that the reward model was trained on, which --shift-every
    compares with; unless given, with the reference's responses."""
    refresh_every: int = 0
    """Updates between two refreshes of the reward model: fresh pairs of the policy's responses are
    labelled, it learns on, and is normalised again; 0 for none (docs/reward-models.md)."""
    refresh_pairs: int = 256
    """Fresh pairs of a refresh."""
    refresh_labels: str | None = None
    """Who labels them: 'gold', the task's gold reward, which is the default where there is one; a
    reward, 'package.module:function', the folder or hub id of a reward model, or the address of a
    reward server; or 'people', who fill in refresh/round-N.jsonl of the run while it waits
    (tokenrlhf labels ask)."""
    refresh_label_noise: float = 0.0
    """Temperature τ of labels drawn from the rewards r, as people differ: a is better with the
    probability 1 / (1 + exp(-(r_a - r_b) / τ)). 0: the higher reward always is."""
    refresh_old_pairs: str | None = None
    """File of the preference pairs that the reward model was trained on: it learns them again with
    the fresh ones, and does not forget."""
    refresh_epochs: int = 2
    """Passes over all pairs in a refresh; 0: nothing is learned, and the reward model's accuracy on
    the policy's own responses is measured all the same."""
    refresh_learning_rate: float = 3e-4
    """AdamW's peak learning rate in a refresh."""
    checkpoint_every: int = 16
    """Updates between two checkpoints, for --resume; 0: only the last. Beside each lies an archive
    (.zip), which TokenPPO.load unpickles, and that can run code: share policy/ instead, and load
    only archives that you trust."""
    keep_checkpoints: int | None = 3
    """How many checkpoints are kept, the newest ones; None: all. The policy of the best evaluation
    is kept apart, in checkpoints/best/."""
    tracker: str | None = None
    """Also log to an experiment tracker: wandb, trackio, or a module with their init, log and
    finish."""
    tracker_project: str = "tokenrlhf"
    """What the tracker files the run under."""
    device: str = "auto"
    """Torch device; of several processes (torchrun, accelerate launch), each takes a GPU."""
    shard_actor: bool = False
    """With several processes, shard weights, gradients and the optimiser's state of the training
    over them (FSDP2); a whole copy of the weights stays in each, for sampling."""
    check_ranks_every: int = 16
    """With several processes, updates between two comparisons of their weights; 0 for none."""
    num_threads: int | None = None
    """CPU threads; default: one for models under 2 million parameters, else torch's default."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Data type of the weights of the frozen models and of the actor."""

    def __post_init__(self) -> None:
        """Validate the settings; those that need an environment are checked when it is made."""
        if isinstance(self.reward_model, list):
            object.__setattr__(self, "reward_model", tuple(self.reward_model))
        check_train_settings(vars(self))
        buffer = self.rollout_buffer()
        estimator = buffer.pop("advantage_estimator")
        check_estimator(estimator, gamma=self.gamma, **buffer)
        policy = {"value_head": self.value_head, "dtype": self.dtype, "lora": self.lora()}
        check_agent({**self.agent(), "normalize_advantage": False, "policy_kwargs": policy})
        check_controller(
            kl_controller(self.kl_controller, self.kl_target, self.kl_horizon, self.kl_dual_rate),
            self.kl_coef,
        )

    @property
    def name(self) -> str:
        """What the run is called: see `agents.settings.run_name`."""
        return run_name(vars(self))

    def agent(self) -> dict[str, Any]:
        """The keyword arguments of `TokenPPO` that need no environment to be known."""
        names = (*PPO_RANGES, *PPO_CHOICES)
        hyperparameters = {name: getattr(self, name) for name in names}
        return {**hyperparameters, "rollout_buffer_kwargs": self.rollout_buffer()}

    def lora(self) -> dict[str, Any] | None:
        """The settings of the adapters in `policy_kwargs`; None: all weights are trained."""
        if self.lora_rank is None:
            return None
        names, alpha = self.lora_target_modules, self.lora_alpha
        return {
            "rank": self.lora_rank,
            **({} if alpha is None else {"alpha": alpha}),
            **({} if names is None else {"target_modules": list(names)}),
        }

    def rollout_buffer(self) -> dict[str, Any]:
        """The keyword arguments of the rollout buffer."""
        is_adaptive, is_critic_free = (
            self.gae_lambda_alpha is not None,
            self.advantage_estimator in CRITIC_FREE,
        )
        settings = {name: getattr(self, name) for name in _BUFFER_SETTINGS}
        return {
            "cut": self.cut or ("carry" if is_adaptive or is_critic_free else "bootstrap"),
            **{name: value for name, value in settings.items() if value is not None},
        }

    def environment(self, split: str = "train") -> dict[str, Any]:
        """The keyword arguments of the environment."""
        names = (
            *(
                "task",
                "reference",
                "reward_model",
                "reward_weights",
                "prompts",
                "prompt_truncation",
                "max_prompt_tokens",
                "max_new_tokens",
            ),
            *("kl_coef", "temperature", "score_clip", "missing_eos_penalty", "scoring"),
            "group_size",
            *("uncertainty_coef", "device", "dtype"),
        )
        kl_shaping = KLPenalty(self.kl_estimator, self.use_kl_loss).kl_shaping
        settings = {name: getattr(self, name) for name in names}
        settings["prompt_columns"] = parse_columns(self.columns) or None
        settings["skip_bad_prompts"] = self.skip_bad
        settings["reward_combine"] = self.combine
        return {"split": split, "kl_shaping": kl_shaping, **settings}

    def as_json(self) -> dict[str, Any]:
        """The content of `config.json`."""
        content = dataclasses.asdict(self)
        content["out"] = None if self.out is None else str(self.out)
        for name in ("config", "resume", "trust_code"):  # of the call; what config holds is here
            del content[name]
        content["sweep"] = list(self.sweep)
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> TrainConfig:
        """The settings that `as_json` wrote.

        Raises:
            ValueError: a setting is missing (none is filled in), unknown, of another type or out of
                its range; it is named.
        """
        return settings_from_json(cls, {**SETTINGS_OF_OLDER_RUNS, **content})

    def names_of_code(self) -> dict[str, str]:
        """The settings that name what a run's files may not, unless somebody trusts them.

        Code, as `"module:attribute"`, which using them imports; and servers, `http://…`, which
        prompts and responses are sent to.
        """
        named: dict[str, Any] = {
            "reward_model": self.reward_model,
            "prompts": self.prompts,
            "refresh_labels": self.refresh_labels,
        }
        if isinstance(self.reward_model, tuple):
            several = {f"reward_model {n}": one for n, one in enumerate(self.reward_model, 1)}
            del named["reward_model"]
            named = {**several, **named}
        code = {name: v for name, v in named.items() if names_code(v) or names_server(v)}
        return {"task": self.task, **code} if ":" in self.task else code
