"""Several models that share one accelerator: who is awake, who is next, and who waits."""
