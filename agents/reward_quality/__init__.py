"""What can be wrong with a reward model, measured.

- `labels`: what labels cost: accuracy and gold reward by the number of pairs; which pairs to label
  next. It trains models, and stands above `agents.runs`.
"""
