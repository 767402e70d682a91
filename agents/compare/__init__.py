"""`tokenrlhf compare`: the same agents on classic control and on text, on scales that are known.

- `config.py`: the settings; `command.py`: the command.
- `environments.py` `rollouts.py`: environments and episodes; `learners.py`: the agents.
- `scales.py` `best_response.py`: the returns that score 0 and 1 on each environment's scale.
- `fingerprints.py` `policy_gradient.py`: what kind of MDP it is, measured by rollouts.
- `evaluators.py` `jobs.py` `workers.py`: the work in pieces, each stored in a separate file.
- `results.py` `figures.py` `page.py`: from the pieces to the report.
"""
