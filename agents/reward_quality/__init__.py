"""What can be wrong with a reward model, measured.

- `shift`: whether the policy's responses are still those that the reward model knows;
  `two_sample`: the test of it.
"""
