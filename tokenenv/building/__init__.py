"""The parts of the builds of bundled models (`tokenenv.tasks.*.build`); not needed at run time."""
