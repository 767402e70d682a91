"""One run: environment, agent, training, evaluation, and the folder it leaves behind."""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import JSONOutputFormat, Logger, TensorBoardOutputFormat

from agents.callbacks import RLHFCallback
from agents.config import TrainConfig
from agents.console import literal
from agents.curves import draw_curves, read_metrics
from agents.evaluation import EvaluationCallback, ResponseReport, evaluate
from agents.files import whole_folder, write_json
from agents.held_out import HeldOut
from agents.policy import LMActorCriticPolicy
from agents.ppo import TokenPPO
from agents.progress import (
    CheckpointCallback,
    ProgressCallback,
    SamplesCallback,
    evaluation_progress,
)
from agents.runs import RunFolder
from agents.vec_env import TokenVecEnv, make_vec_env
from tokenenv.optimum import Comparison, ExactEvaluation
from tokenenv.rewards import LearnedReward

__all__ = ["Interrupted", "TrainingRun", "summarize"]


class Interrupted(Exception):
    """A run was stopped by Ctrl-C; the message says what was kept and where."""


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, as schedulers send it, keep the same things as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class TrainingRun:
    """A run from its configuration to its summary.

    Args:
        config: what to do.
        console: where progress is shown.

    Raises:
        ValueError: the configuration can't be used; nothing has been written then.
    """

    def __init__(self, config: TrainConfig, console: Console) -> None:
        self.config, self.console = config, console
        self.env = make_vec_env(n_envs=config.n_envs, seed=config.seed, **config.environment())
        self.held_out = HeldOut.of(config.environment(), config.eval_prompts)
        self.model = build_agent(config, self.env)
        _choose_threads(config, self.model)
        # The reference, unless training starts from another model: then a copy of that.
        self.starting_actor = self.held_out.scorer.reference.language_model.model
        if config.actor is not None:
            self.starting_actor = copy.deepcopy(self.model.policy.actor).requires_grad_(False)
        self.run = RunFolder.create(config)
        self.tokenizer = self.held_out.scorer.reference.language_model.tokenizer
        self.before: list[ResponseReport] = []
        self.after: list[ResponseReport] = []

    def train(self) -> dict[str, Any]:
        """Train, save, evaluate; returns the summary.

        Raises:
            Interrupted: by Ctrl-C or SIGTERM; what there is by then is kept, and the message says
                where.
        """
        self.console.print(Text.assemble("training in ", literal(self.run.root, "bold")))
        with _sigterm_as_ctrl_c():
            seconds = self._learn()
            try:
                return self._finish(seconds)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"training is done, the evaluation was stopped. Kept in {self.run.root}: "
                    "policy/, checkpoints/, metrics.jsonl and samples.jsonl. Measure it with: "
                    f"tokenrlhf evaluate {self.run.root}"
                ) from None

    def _learn(self) -> float:
        """Train and save the models; returns the seconds it took."""
        config, run, model = self.config, self.run, self.model
        outputs = [
            JSONOutputFormat(str(run.metrics)),
            TensorBoardOutputFormat(str(run.tensorboard)),
        ]
        logger = Logger(str(run.root), outputs)
        model.set_logger(logger)
        progress, callbacks = self._callbacks()
        start = time.perf_counter()
        try:
            self.before = self.samples.respond(self.starting_actor)
            model.learn(config.total_tokens, callback=callbacks)
        except KeyboardInterrupt:
            progress.close()
            kept = self._keep("interrupted")
            raise Interrupted(f"stopped after {model.num_timesteps:,} tokens. {kept}") from None
        except Exception:  # a user's reward function, say: what was learned so far is not lost
            progress.close()
            self.console.print(literal(self._keep("failed")))
            raise
        finally:
            progress.close()
            logger.dump(model.num_timesteps)  # what the last update recorded
            logger.close()
        seconds = time.perf_counter() - start
        self.checkpoints.save(f"tokens-{model.num_timesteps}")
        self._save_models()
        return seconds

    def _callbacks(self) -> tuple[ProgressCallback, list[BaseCallback]]:
        config, run = self.config, self.run
        metrics = RLHFCallback()
        self.samples = SamplesCallback(run, self.held_out, max(1, config.eval_every))
        self.checkpoints = CheckpointCallback(run.checkpoints, config.checkpoint_every)
        self.checkpoints.init_callback(self.model)
        progress = ProgressCallback(self.console, metrics, config.total_tokens)
        callbacks: list[BaseCallback] = [metrics, self.samples, self.checkpoints, progress]
        if config.eval_every:
            callbacks.append(
                EvaluationCallback(
                    self.held_out,
                    config.eval_every,
                    run.checkpoints / "best",
                    seed=config.seed,
                    tokenizer=self.tokenizer,
                )
            )
        return progress, callbacks

    def _keep(self, name: str) -> str:
        """Save what there is, and say where."""
        path = self.checkpoints.save(name)
        self._save_models()
        return (
            f"Kept in {self.run.root}: {path.relative_to(self.run.root)} (TokenPPO.load reads it; "
            "it unpickles: only from those you trust), policy/, metrics.jsonl and samples.jsonl."
        )

    def _finish(self, seconds: float) -> dict[str, Any]:
        self.after = self.samples.respond(self.model.policy.actor)
        self.run.append_samples(self.model.num_timesteps, self.after)
        return self._summarize(seconds)

    def _save_models(self) -> None:
        policy: Any = self.model.policy
        with whole_folder(self.run.policy) as folder:
            policy.save_pretrained(folder, self.tokenizer)
        reward = self.held_out.scorer.reward
        if isinstance(reward, LearnedReward):
            with whole_folder(self.run.reward_model) as folder:
                reward.reward_model.save_pretrained(folder)

    def _summarize(self, seconds: float) -> dict[str, Any]:
        with evaluation_progress(self.console, self.held_out) as on_progress:
            comparison = evaluate(
                self.model.policy.actor,
                self.held_out,
                self.config.eval_responses,
                self.config.seed,
                on_progress,
                starting_actor=None if self.config.actor is None else self.starting_actor,
            )
        tokens = self.model.num_timesteps
        summary = summarize(self.config, self.held_out, comparison)
        summary.update(tokens=tokens, tokens_per_second=tokens / seconds, wall_seconds=seconds)
        summary["precision"] = self.model.update_precision
        if self.env.inner.kl_coef != summary["kl_coef"]:  # a controller moved it
            summary["kl_coef_final"] = self.env.inner.kl_coef
        write_json(self.run.summary, summary)
        draw_curves(read_metrics(self.run.metrics), summary, self.run.curves)
        return summary


def summarize(
    config: TrainConfig, held_out: HeldOut, found: Comparison | ExactEvaluation
) -> dict[str, Any]:
    """What `summary.json` holds of an evaluation."""
    known: dict[str, Any] = asdict(found)
    if isinstance(found, Comparison):
        known["is_reliable"] = found.is_reliable
    return {
        "task": config.task,
        "seed": config.seed,
        "kl_coef": held_out.settings.kl_coef,
        "prompts": len(held_out.texts),
        "prompts_asked_for": held_out.asked_for,
        **known,
    }


SMALL_MODEL = 2_000_000
"""Parameters below which a second CPU thread waits more than it works."""


def _choose_threads(config: TrainConfig, model: TokenPPO) -> None:
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    elif sum(p.numel() for p in model.policy.parameters()) < SMALL_MODEL:
        torch.set_num_threads(1)


def build_agent(config: TrainConfig, env: TokenVecEnv) -> TokenPPO:
    """The agent of a configuration.

    Raises:
        ValueError: a setting can't be used.
    """
    settings = env.inner.settings
    buffer = config.rollout_buffer()
    model = TokenPPO(
        LMActorCriticPolicy,
        env,
        learning_rate=config.learning_rate,
        n_steps=config.n_steps,
        batch_size=config.batch_size,
        n_epochs=config.n_epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        clip_range_vf=config.clip_range_vf,
        normalize_returns=config.normalize_returns,
        whiten_advantages=config.whiten_advantages,
        ent_coef=config.ent_coef,
        vf_coef=config.vf_coef,
        max_grad_norm=config.max_grad_norm,
        target_kl=config.target_kl,
        micro_batch_tokens=config.micro_batch_tokens,
        precision=config.precision,
        kl_estimator=config.kl_estimator,
        use_kl_loss=config.use_kl_loss,
        kl_controller=config.kl_controller,
        kl_target=config.kl_target,
        kl_horizon=config.kl_horizon,
        kl_dual_rate=config.kl_dual_rate,
        critic_warmup=config.critic_warmup,
        rollout_buffer_kwargs=buffer,
        policy_kwargs={
            "actor": config.actor or settings.reference,
            "value_head": config.value_head,
            "critic": settings.reward_model if config.critic == "reward_model" else config.critic,
            "temperature": config.temperature,
            "dtype": config.dtype,
        },
        seed=config.seed,
        device=settings.device,
    )
    # The start of training asks for this too, but by then a folder has been written.
    model.rollout_buffer.check_environment(env, settings)  # type: ignore[attr-defined]
    return model
