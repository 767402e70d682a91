"""A run: what `tokenrlhf train` does, and the folder that it leaves behind.

* `training`: the run, from its settings to its summary; `agent`: its agent; `results` and
  `outcome`: the evaluation at the end, and how a run ended; `last_good`: the policy of before
  numbers were lost; `tracker`: another program that logs it; `ranks`: a run of several processes.
* `folder`: the paths of a run's files, and reading them again; `output_folder`: a folder that one
  process writes into, and whose old content is removed only for new.
* Other commands: `evaluate`, `sample`, `explain` and `best_of_n` on a run, with `prompts`; `sft`;
  `reward_model` with `reward_model_config`, `reward_model_files`, `reward_model_tables` and
  `reward_model_figure`.
* `config`: the settings of `evaluate`, `sample`, `explain` and `reward-model`; those of `train` are
  in `agents.config`.
* `log`: JSON Lines and TensorBoard; `tokens`: token tables; `progress`: the callbacks of a
  training; `display` and `sparklines`: what a terminal shows meanwhile; `tables`: what a command
  prints at its end; `curves`: the figure.

The door names nothing: `tables` must be importable without torch, and `training` is not.
"""
