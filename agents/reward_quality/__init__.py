"""What can be wrong with a reward model, measured.

- `best_of_n`: the best of n responses of the reference, the baseline of every training.
"""
