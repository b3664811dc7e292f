"Distributing, resuming and recording work."
