"""A run: what `tokenrlhf train` does, and the folder that it leaves behind.

* `training`: the run, from its settings to its summary; `reward_model`: the training of one.
* `folder`: the paths of a run's files, and reading them again; `output_folder`: a folder that one
  process writes into, and whose old content is removed only for new.
* `config`: the settings of `evaluate`, `sample` and `reward-model`; those of `train` are in
  `agents.config`.
* `log`: JSON Lines and TensorBoard; `progress`: the bar; `tables`: what a command prints at its
  end; `curves`: the figure.

The door names nothing: `tables` must be importable without torch, and `training` is not.
"""
