"""`tokenrlhf play`: a person is the policy, token by token.

- `config.py`: the settings; `command.py`: the loop of reading and answering.
- `moves.py`: from a typed line to tokens or a wish; `game.py`: the episode, its candidates, undo.
- `comparisons.py`: what the reference, a trained policy and the optimum get; `view.py`: the screen.
"""
