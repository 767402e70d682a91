"""The build of the task `reviews`: reference, reward model, a bound on the optimum.

* `steps`: the build, step by step; `measuring`: what the card reports; `card`: the card as a page.
"""

from tokenenv.tasks.reviews.build.measuring import sample_pairs
from tokenenv.tasks.reviews.build.steps import BuildSettings, build, main

__all__ = ["BuildSettings", "build", "main", "sample_pairs"]
