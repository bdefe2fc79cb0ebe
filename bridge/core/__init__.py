"""The Module and everything that works on it; imports no framework."""
