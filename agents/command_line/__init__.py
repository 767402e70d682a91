"""What the command line is made of, besides the commands.

- `settings_files.py`: the settings of `train` from a file; `option_hints.py`: names of other tools.
- `seeds.py`: one run with several seeds.
"""
