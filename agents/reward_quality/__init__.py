"""What can be wrong with a reward model, measured.

- `text_features`: what a text looks like, in numbers: length, punctuation, markup, hedges, …; the
  lists of words are files in `word_lists`.
- `audit`: `tokenrlhf audit`, what a reward pays for besides what was meant.
"""
