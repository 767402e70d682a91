"""The build of the task `exact`: reference, reward model, all responses enumerated.

* `steps`: the build, step by step; `melodies`: answers for the reward model to compare.
* `measuring`: what the card reports; `card`: the card as a page.
"""

from tokenenv.tasks.exact.build.steps import BuildSettings, build, enumerate_folder, main

__all__ = ["BuildSettings", "build", "enumerate_folder", "main"]
