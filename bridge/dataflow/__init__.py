"""What the arrays of a program do in it, read from its jaxpr; which arrays of two programs are one."""
