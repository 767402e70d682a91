"""How the models that ship with a task are made and measured; not needed at run time."""
