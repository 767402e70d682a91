"""The same PPO balances a pole and writes melodies: a small version of `tokenrlhf compare`."""

from pathlib import Path

from rich.console import Console

from agents.compare.command import compare
from agents.compare.config import CompareConfig

report = compare(
    CompareConfig(
        out=Path("compare"),
        envs=("CartPole-v1", "TokenRLHF-Exact-v0"),
        agents=("token-ppo",),
        seeds=1,
        steps=20_000,
        episodes=10,
        fingerprint_episodes=10,
        workers=1,
    ),
    Console(quiet=True),
)
print("0: a random policy, or sampling from the reference; 1: solved, or the known optimum")
for env_id, agents in report["scores"].items():
    for agent, found in agents.items():
        fingerprint = report["fingerprints"][env_id]
        print(f"{agent} on {env_id}: score {found['score']:.2f} after 20,000 steps")
        print(f"  {fingerprint['actions']} actions, {fingerprint['horizon']:.1f} steps an episode")
print("written to compare/:", *sorted(path.name for path in Path("compare").iterdir()))
