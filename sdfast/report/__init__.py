"From rows of results to tables, figures and a page."
