"""A task of your own, from preferences to a trained model: people who like short reviews."""

import numpy as np

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env
from tokenenv import rewards
from tokenenv.models import load_frozen, sample_responses
from tokenenv.tasks import Task, load_task

# 1. A reference: any causal LM with its tokenizer, here that of the bundled task.
REFERENCE = load_task("reviews").reference
language_model = load_frozen(REFERENCE)


# 2. Prompts, different ones for training and for evaluation; and the true reward, if you know it.
def prompts(split: str) -> list[str]:
    when = ("today", "last night") if split == "train" else ("on Sunday",)
    return [f"{who} saw this film {time}." for who in ("I", "We") for time in when]


def brevity(prompt: str, response: str, stopped: bool) -> float:
    return -len(response.split()) / 10


# 3. Preferences: of two answers of the reference, the one that people like better.
def answers(seed: int) -> list[tuple[str, str, bool]]:
    texts = prompts("train") * 100
    ids = [np.array(language_model.tokenizer(text)["input_ids"]) for text in texts]
    found = sample_responses(language_model.model, language_model.eos_token_ids, ids, 32, seed=seed)
    decode = language_model.tokenizer.batch_decode
    said = decode([s.tokens for s in found], skip_special_tokens=True)
    return list(zip(texts, said, [s.stopped for s in found], strict=True))


twice = zip(answers(1), answers(2), strict=True)
both = [sorted(two, key=lambda answer: brevity(*answer)) for two in twice]
pairs = [
    rewards.PreferencePair(good[0], good[1], bad[1]) for bad, good in both if good[1] != bad[1]
]

# 4. A reward model learned from them, normalised on the reference's own answers.
reward_model = rewards.new_reward_model(REFERENCE)
settings = rewards.RewardTrainingSettings(epochs=2, learning_rate=1e-3)
report = rewards.train_reward_model(pairs, reward_model, settings)
print(f"the reward model agrees with the gold reward on {report.accuracy:.0%} of held-out pairs")
samples = answers(3)
encoded = [reward_model.encode(prompt, text) for prompt, text, _ in samples]
reward_model.measure_normalization(reward_model.raw_rewards(encoded))
reward_model.save_pretrained("brevity-reward-model")  # a folder that transformers loads
print(f"gold reward of the reference {np.mean([brevity(*sample) for sample in samples]):.2f}")

# 5. The task; in a module of yours its name would be "package.module:TASK".
TASK = Task("brevity", REFERENCE, "brevity-reward-model", prompts, 12, 32, 0.25, brevity)

# 6. Training, judged by the gold reward too and not by the reward model alone.
env = make_vec_env(n_envs=64, seed=0, scoring="deferred", task="__main__:TASK")
model = TokenPPO(LMActorCriticPolicy, env, learning_rate=5e-4, n_steps=32, batch_size=512, seed=0)
for _ in range(4):  # the last rollout of each, before its update
    model.learn(4096, callback=(callback := RLHFCallback()), reset_num_timesteps=False)
    print({name: round(callback.metrics[name], 2) for name in ("score", "gold_reward", "kl")})
