"""The paper's tables again, from the public trace, in the simulator."""
