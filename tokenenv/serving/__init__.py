"""What other programs reach over HTTP: reward models, and the environment.

* `served`: what is served as a reward, a model or a function; `replies`: what was answered already;
  `reward_app`: both as a web application, for `tokenrlhf serve-reward` (the extra `serve`).
* `openenv`: the environment as one of OpenEnv (the extra `openenv`).

Each module needs the libraries of its extra, and nothing else imports it.
"""
