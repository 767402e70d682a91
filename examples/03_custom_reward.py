"""Train against a reward function of your own: one float for each response."""

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env


def mentions_music(prompts: list[str], responses: list[str]) -> list[float]:
    """1 where a response mentions music."""
    return [float("music" in response) for response in responses]


env = make_vec_env(n_envs=64, seed=0, scoring="deferred", reward_model=mentions_music)
model = TokenPPO(LMActorCriticPolicy, env, learning_rate=5e-4, n_steps=32, batch_size=512, seed=0)
callback = RLHFCallback()
model.learn(20_000, callback=callback)
print({name: round(value, 2) for name, value in callback.metrics.items()})
