"""Reward hacking during PPO: what a run shows of it, and what is done about it.

- `law`: gold and proxy reward over √KL, R(d) = R₀ + d(α − β·log d), fitted with its error;
  `points`: what a run's metrics hold of it; `figure`: the curve as a picture.
- `tracking`: features of the texts that a rollout finishes, and where they began.
- `rules`: when a run looks like hacking, without the gold reward; `monitor`: `HackingMonitor`,
  which watches a training by them, warns, stops it or raises the KL coefficient.
"""
