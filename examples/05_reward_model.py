"""Learn a reward model from preference pairs, and score two responses with it."""

import random

from rich.progress import Progress

from tokenenv.rewards import (
    PreferencePair,
    RewardTrainingSettings,
    new_reward_model,
    train_reward_model,
)
from tokenenv.tasks import load_task

draw = random.Random(0)
pairs = []
for _ in range(300):
    good, bad = draw.choice(["superb", "great", "fun"]), draw.choice(["awful", "dull", "bad"])
    prompt = f"{draw.choice(['I', 'We'])} saw this film today. The {draw.choice(['plot', 'cast'])}"
    pairs.append(PreferencePair(prompt, chosen=f" was {good}.", rejected=f" was {bad}."))

reward_model = new_reward_model(load_task("reviews").reference)
settings = RewardTrainingSettings(epochs=4, batch_size=16, learning_rate=1e-3)
with Progress() as bar:
    task = bar.add_task("training")
    report = train_reward_model(
        pairs,
        reward_model,
        settings,
        lambda n, total, loss: bar.update(task, completed=n, total=total),
    )
print(f"held-out accuracy {report.accuracy:.2f}, loss {report.loss:.3f}")
for response in (" was great.", " was awful."):
    tokens = reward_model.encode("I saw this film today. The plot", response)
    print(f"{response!r}: {reward_model.normalize(reward_model.raw_rewards([tokens]))[0]:+.2f}")
