"""Other inference engines, timed beside ours: each in a process of its own, with the Python that has it."""
