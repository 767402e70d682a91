"""`tokenrlhf audit`: what a reward pays for besides what was meant.

- `config`: its settings, without torch; `command`: the audit from end to end; `view` and `figure`:
  its result on a terminal and as a picture; `files`: and as `audit.json`, without torch.
- `texts`: what is scored, from pairs or from samples of a reference; `rewards`: scores of texts by
  whatever may be a reward.
- `features`: whether scores follow the features of texts; `probes` and `edits`: whether edits that
  keep the meaning move them; `invariances`: whether they depend on what is scored beside a text.
- `bands`: intervals by a bootstrap over prompts, wide enough for all of them together; `verdicts`:
  what is said of it all, in words, strongest first.
"""
