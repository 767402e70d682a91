"""One update of PPO.

* `ppo`: `TokenPPO`: its settings, and what it changes of SB3's PPO.
* `losses`: PPO's losses, the KL loss, whitening; `precision`: autocast, and what ratios divide by.
"""

from agents.ppo.ppo import TokenPPO

__all__ = [
    "TokenPPO",
]
