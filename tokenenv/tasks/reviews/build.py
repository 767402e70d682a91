"""The command `python -m tokenenv.tasks.reviews.build`: it builds the models of the task."""

from __future__ import annotations

from tokenenv.building.reviews import main

if __name__ == "__main__":
    main()
