"""The same agents on CartPole and on text, on one scale: a small version of `tokenrlhf compare`."""

from pathlib import Path

from rich.console import Console

from agents.compare.command import compare
from agents.compare.config import CompareConfig

report = compare(
    CompareConfig(
        out=Path("compare"),
        envs=("CartPole-v1", "TokenRLHF-Features-TopK-v0"),
        agents=("ppo",),
        seeds=1,
        steps=1_024,
        episodes=5,
        prompts=4,
        fingerprint_episodes=4,
        workers=1,
    ),
    Console(quiet=True),
)
for env_id, agents in report["scores"].items():
    for agent, found in agents.items():
        print(f"{agent} on {env_id}: score {found['score']}")
print("written:", *sorted(path.name for path in Path("compare").glob("compare.*")))
