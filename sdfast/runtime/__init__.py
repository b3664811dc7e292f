"Running, resuming and distributing work."
