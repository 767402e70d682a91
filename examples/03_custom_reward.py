"""Train against a reward function of your own: one float for each response."""

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env


def mentions_music(prompts: list[str], responses: list[str]) -> list[float]:
    """1 where a response mentions music."""
    return [float("music" in response) for response in responses]


env = make_vec_env(n_envs=64, seed=0, scoring="deferred", reward_model=mentions_music)
model = TokenPPO(LMActorCriticPolicy, env, learning_rate=5e-4, n_steps=32, batch_size=512, seed=0)
for _ in range(8):  # a rollout each: what is printed was sampled before its update
    model.learn(64 * 32, callback=(callback := RLHFCallback()), reset_num_timesteps=False)
    share, kl = callback.metrics["score"], callback.metrics["kl"]
    print(f"{share:4.0%} of the responses mention music, KL to the reference {kl:5.2f} nats")
