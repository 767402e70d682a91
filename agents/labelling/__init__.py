"""Pairs of responses for labelling, and their labels.

* `config`: the settings of `tokenrlhf sample-pairs`, without torch; `command`: the command.
* `drawing`: pairs of responses of a language model.
* `pair_file`: the file of pairs, which is filled in bit by bit.
* `by_reward`, `by_file`, `by_person`: where labels come from.
"""
