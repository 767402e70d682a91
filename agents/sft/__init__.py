"""Supervised fine-tuning of a causal LM: the warm start that preferences and PPO begin with.

* `config`: the settings, without torch: `SFTSettings` of the training, `SFTConfig` of the command.
* `encoding`: examples as token ids: what is read, what is learned, what is cut;
  `encoding_report`: how often.
* `losses`: the loss, and its forward passes; `training`: `train_sft`, one training; `report`: what
  came of it.
* `files`: the folder that it is written to.
"""
