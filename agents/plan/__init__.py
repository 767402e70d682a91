"""`tokenrlhf plan`: whether a training fits into memory, before a weight is loaded.

- `config`: its settings; `models`: models without weights, from a config alone; `live_memory`: the
  most bytes that tensors hold during a computation that is not made; `traces`: the stages of a
  training as such computations; `memory`: the sum of it, for one GPU; `advice`: the micro-batch,
  and what to change; `command`, `view`: the answer.
"""
