"""The formats of files that hold weights, one in each module; headers are read, arrays later."""
