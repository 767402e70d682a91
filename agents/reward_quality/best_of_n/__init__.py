"""Best-of-n beside the tilted optimum of equal KL, and where a trained policy stands.

- `config`: the settings of `tokenrlhf best-of-n`, without torch; the command itself reads runs and
  stands with them (`agents/runs/best_of_n.py`).
- `measuring`: in closed form where all responses can be enumerated, by samples elsewhere.
- `view`: the table; `figure`: E[R], J and gold reward against √KL.
"""
