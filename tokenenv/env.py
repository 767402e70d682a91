"""`TokenRLHF-v0`: RLHF as a Gymnasium environment, one step is one token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from tokenenv.episodes import NO_TOKEN
from tokenenv.mdp import TokenMDP, TokenMDPMixin, check_options
from tokenenv.rendering import LiveEpisode, draw_episode, render_episode
from tokenenv.settings import EnvSettings, Prompts, Rewards

__all__ = ["TokenEnv", "token_spaces"]


def token_spaces(mdp: TokenMDP) -> tuple[spaces.Box, spaces.Discrete]:
    """The observation and action space of one environment over `mdp`."""
    vocabulary_size = mdp.language_model.vocabulary_size
    width = mdp.max_prompt_tokens + mdp.max_new_tokens
    observation_space = spaces.Box(NO_TOKEN, vocabulary_size - 1, (width,), np.int64)
    return observation_space, spaces.Discrete(vocabulary_size)


class TokenEnv(TokenMDPMixin, gym.Env[np.ndarray, np.int64]):
    """Generate a response to a prompt, one token per step, for a learned reward.

    ## Description
    The agent is a language model (or anything that picks token ids). An episode starts from a
    prompt; every action appends one token to the response; when the response ends, a reward model
    that was learned from pairwise preferences scores it. Every step carries its half of the KL
    penalty that holds the agent near a frozen reference model.

    ## Action Space
    `Discrete(V)`: a token id; V is the number of rows of the reference's output embedding. An id
    outside it raises `ValueError`.

    ## Observation Space
    `Box(-1, V-1, (P+T,), int64)`: the prompt right-aligned in columns 0 … P−1, the response
    left-aligned in columns P … P+T−1, −1 wherever there is no token.

    ## Rewards
    `r_t = β·log π_ref(a_t|s_t) + [t is last]·R(x, y)`, a function of state and action alone. The
    other half of the KL penalty, `−β·log π(a_t|s_t)`, belongs to the agent that knows π
    (`agents.RLHFCallback` adds it). `R` is the reward model's output, normalised to mean 0 and
    standard deviation 1 on reference samples, clipped and penalised as the arguments say. With
    `scoring="deferred"`, `step` pays 0 and the trainer's buffer scores whole rollouts at once;
    anywhere else the first episode that ends raises `ValueError`, unless you have declared that you
    score the episodes yourself: `env.unwrapped.leave_scoring_to_caller()`.

    ## Starting State
    A prompt drawn uniformly from the split, shared by `group_size` consecutive episodes; a seeded
    reset draws a new one. `reset(options={"prompt": "text"})` sets a prompt outside of any group;
    instead of a text it takes a list of messages, which the reference's chat template renders, or
    `{"prompt": …, "column": …}` with the columns that the reward asks for.

    ## Episode End
    EOS or the T-th token: `terminated=True`, and `info["finish_reason"]` is `"stop"` or
    `"length"`. Never truncated: the budget can be read off the state.

    ## Info
    At a reset `prompt`, a text; where it was given as messages or with columns also `origin`, the
    `tokenenv.data.Prompt` that holds them; with a `group_size` of 2 or more also `group`, the
    number of the episode's group (unless `options` set the prompt). At every step (stepwise
    scoring) `ref_logprob` and `kl_coef`; at the end also `rm_score` (raw), `score` (paid as
    reward), `finish_reason`, `response`, `response_length` and, if the task has one, `gold_reward`;
    with a list of rewards `rm_scores`, each one's raw number by its name; with several reward
    models `rm_disagreement`, the standard deviation over them of their normalised rewards. Deferred
    scoring gives `finish_reason`, `response` and `response_length` at the end and nothing else.

    ## Copies
    `env.unwrapped.fork()` is a copy that continues identically and apart from the original, cheap
    enough for every token; `tokenenv.wrappers.fork(env)` copies the wrappers around it as well.

    Args:
        task: name of a bundled task (`"reviews"`) or `"package.module:TASK"`; it provides the
            defaults of all arguments that are None.
        reference: folder or hub id of the causal LM that is the reference.
        reward_model: folder or hub id of a reward model; or the folder of an ensemble, which
            `tokenrlhf reward-model --members` wrote; or a Python callable
            `(prompts, responses) -> one float per response`, or `"package.module:function"` naming
            one; or the address of a reward server, `"http://HOST:PORT"` (docs/reward-servers.md);
            or a list of these, which `reward_combine` makes one reward of. Further parameters
            of a callable are columns of the prompts; one with a parameter `completions` is called
            as TRL calls it (`tokenenv.rewards.parameters`). With deferred scoring, a callable may
            return one list of floats per response.
        prompts: a file, the name of a task, or a list of prompts. A prompt is a text, a list of
            messages (`{"role": …, "content": …}`), or `{"prompt": …, "column": …}`.
        split: `"train"` or `"eval"`: disjoint prompts.
        max_prompt_tokens: P.
        max_new_tokens: T.
        kl_coef: β ≥ 0. This environment is its one owner: `set_kl_coef` changes it between
            rollouts.
        kl_shaping: `"k1"` pays the reference's half of the KL penalty, `"none"` only the score: for
            agents that pay the whole penalty themselves, with another estimator or in their loss.
        temperature: of the reference's log-probabilities; the agent must sample with the same.
        score_clip: normalised scores are clipped to ±`score_clip`.
        missing_eos_penalty: subtracted from the score of a response that ends by its length.
        scoring: `"step"` or `"deferred"`.
        group_size: how many episodes in a row start from the same prompt; in a vector environment,
            whichever rows start next. Estimators that compare the responses to a prompt need 2 or
            more.
        device: a torch device, or `"auto"`.
        dtype: of the frozen models: `"float32"`, `"float64"`, `"bfloat16"`, `"float16"`.
        render_mode: `"ansi"`: `render()` gives the episode as text, its tokens coloured by their
            reward with escape codes, wherever it goes; set the variable `NO_COLOR` for plain text.
            `"human"`: every step writes its token to the standard output, in colours on a terminal
            (unless `NO_COLOR` is set), elsewhere a plain line for each. `"rgb_array"`: `render()`
            gives a picture, of one size for all episodes, so that `RecordVideo` makes a film. The
            palette is the same: orange below 0, blue above. Or None.
        reward_weights: one for each reward of a list; None: 1 each.
        prompt_truncation: what is done with prompts of more than P tokens: `"error"`,
            `"keep-end"` (cut the beginning off, but for BOS) or `"drop"`.
        prompt_columns: what columns of a file of prompts mean and their names in it:
            `{"prompt": "question"}`; any other meaning is the name that rewards ask for.
        skip_bad_prompts: go on without the rows of that file that can't be used; how many they are
            is said.
        reward_combine: how several rewards become one: `"sum"`, weighted; of reward models also
            `"mean"`, `"min"` (the worst of them) and `"uncertainty"` (mean − c·standard deviation),
            each model normalised on the same responses of the reference, and the combination as
            well. None: `"sum"`, or `"mean"` where `reward_model` is the folder of an ensemble.
        uncertainty_coef: c of `"uncertainty"`; None: 1.

    Raises:
        ValueError: an invalid argument; the message names the allowed values.

    ## Version History
    * v0: initial version.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["ansi", "human", "rgb_array"],
        "render_fps": 4,
    }

    def __init__(
        self,
        task: str = "reviews",
        reference: str | None = None,
        reward_model: Rewards | None = None,
        prompts: Prompts | None = None,
        split: str = "train",
        max_prompt_tokens: int | None = None,
        max_new_tokens: int | None = None,
        kl_coef: float | None = None,
        kl_shaping: str = "k1",
        temperature: float = 1.0,
        score_clip: float | None = None,
        missing_eos_penalty: float = 0.0,
        scoring: str = "step",
        group_size: int = 1,
        device: str = "auto",
        dtype: str = "float32",
        render_mode: str | None = None,
        reward_weights: Sequence[float] | None = None,
        prompt_truncation: str = "error",
        prompt_columns: Mapping[str, str] | None = None,
        skip_bad_prompts: bool = False,
        reward_combine: str | None = None,
        uncertainty_coef: float | None = None,
    ) -> None:
        settings = EnvSettings(
            task=task,
            reference=reference,
            reward_model=reward_model,
            prompts=prompts,
            split=split,
            max_prompt_tokens=max_prompt_tokens,
            max_new_tokens=max_new_tokens,
            kl_coef=kl_coef,
            kl_shaping=kl_shaping,
            temperature=temperature,
            score_clip=score_clip,
            missing_eos_penalty=missing_eos_penalty,
            scoring=scoring,
            group_size=group_size,
            device=device,
            dtype=dtype,
            render_mode=render_mode,
            reward_weights=reward_weights,
            prompt_truncation=prompt_truncation,
            prompt_columns=prompt_columns,
            skip_bad_prompts=skip_bad_prompts,
            reward_combine=reward_combine,
            uncertainty_coef=uncertainty_coef,
        )
        self.mdp = TokenMDP(settings, num_envs=1)
        self.observation_space, self.action_space = token_spaces(self.mdp)
        self.render_mode = render_mode
        self._live = LiveEpisode()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; `options={"prompt": "text"}` gives its prompt.

        Raises:
            ValueError: the prompt is empty or too long, or an option is unknown; the running
                episode goes on then.
        """
        options = check_options(options, ("prompt",))
        prompt = self.mdp.checked_prompt(options.get("prompt"))
        super().reset(seed=seed)
        if seed is not None:
            self.mdp.begin_group()
        self.mdp.reference_decoder.refill()
        info = self.mdp.start(0, self.np_random, prompt)
        if self.render_mode == "human":
            self._live.start(self.mdp)
        return self._observation(), info

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Append the token `action` to the response.

        Raises:
            gymnasium.error.ResetNeeded: there is no running episode.
            ValueError: `action` is no token id.
        """
        result = self.mdp.step(np.asarray(action).reshape(-1), np.zeros(1, dtype=np.int64))
        info: dict[str, Any] = {}
        if result.ref_log_probs is not None:
            info = {"ref_logprob": float(result.ref_log_probs[0]), "kl_coef": self.kl_coef}
        for ending in result.endings:
            info.update(ending)
        if self.render_mode == "human":
            self._live.add(self.mdp)
        return self._observation(), float(result.rewards[0]), bool(result.ended[0]), False, info

    def _observation(self) -> np.ndarray:
        return self.mdp.episodes.observations[0].copy()

    def render(self) -> str | np.ndarray | None:
        """The episode as text or as a (height, width, 3) uint8 picture, as `render_mode` says.

        None for `"human"`, which has written it already.
        """
        if self.render_mode == "rgb_array":
            return draw_episode(self.mdp, 0)
        return render_episode(self.mdp, 0) if self.render_mode == "ansi" else None
