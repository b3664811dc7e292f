"From a question to rows of results."
