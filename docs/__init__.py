"""Documentation, and the tools that draw parts of it."""
