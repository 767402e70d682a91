"""The command `python -m tokenenv.tasks.exact.build`; its work is done in `tokenenv.building`.

Found by name, as all that belongs to a task is: the building uses the whole package, and a task
lies on its ground floor.
"""

from __future__ import annotations

from tokenenv.tasks import load_object

if __name__ == "__main__":
    load_object("tokenenv.building.exact:main")()
