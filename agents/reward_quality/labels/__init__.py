"""`tokenrlhf labels`: what labels cost, and which pairs to label next.

* `config`: the settings of both commands, without torch.
* `curve`: `labels curve`; `pair_sources`: pairs to learn from and to judge by, of a file or drawn
  anew; `reward_models`: one training and its accuracy; `policies`: PPO with what was trained;
  `points`: results that are kept one by one; `law`: accuracy(n) = a − b·n^(−c), and what the next
  point costs; `curve_report`, `curve_figure`: tables and picture.
* `select`: `labels select`; `pool`: pairs without labels; `disagreement`: on which pairs reward
  models contradict each other; `diversity`: which of these are not alike; `simulation`: whether
  it helps, on a pool whose labels are known.
"""
