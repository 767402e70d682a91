"""What can be wrong with a reward model, measured.

- `best_of_n`: the best of n responses of the reference, the baseline of every training.
- `shift`: whether the policy's responses are still those that the reward model knows;
  `two_sample`: the test of it.
- `labels`: what labels cost: accuracy and gold reward by the number of pairs; which pairs to label
  next. It trains models, and stands above `agents.runs`.
- `text_features`: what a text looks like, in numbers: length, punctuation, markup, hedges, …; the
  lists of words are files in `word_lists`.
- `audit`: `tokenrlhf audit`, what a reward pays for besides what was meant.
- `hacking`: features of the responses in PPO, an alarm that knows no gold reward, and the law of
  gold against proxy.
"""
