"""The command `python -m tokenenv.tasks.reviews.build`; its work is done in `tokenenv.building`.

Found by name, since the building uses the whole package and a task lies on its ground floor.
"""

from __future__ import annotations

import importlib

if __name__ == "__main__":
    importlib.import_module("tokenenv.building.reviews").main()
