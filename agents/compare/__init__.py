"""`tokenrlhf compare`: the same agents on classic control and on text, on scales that are known.

- `config.py`: the settings; `command.py`: the command.
- `environments.py` `rollouts.py`: environments and episodes; `learners.py`: the agents.
- `scales.py` `best_response.py`: what is 0 and what is 1 on each environment's scale.
- `fingerprints.py` `policy_gradient.py`: what kind of MDP it is, measured by rollouts.
- `evaluators.py` `jobs.py` `workers.py`: the work in pieces, each kept in a file of its own.
- `statistics.py` `results.py` `figures.py` `page.py`: from the pieces to the report.
"""
