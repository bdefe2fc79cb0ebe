"""One package for each library: how it becomes a Module, and how a Module becomes its."""
