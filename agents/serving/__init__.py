"""`tokenrlhf serve-reward`: a reward model for trainings on other machines.

- `config`: its settings; `command`: binds the port, loads the reward and answers until a signal.
"""
