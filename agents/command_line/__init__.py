"""What the command line is made of, besides the commands.

- `option_hints.py`: names of other tools' options; `seeds.py`: one run with several seeds;
  `variants.py`: the runs of seeds and sweeps; `launchers.py`: processes and tasks of ray.
"""
