"""What the pages of the recipe share, of a run and of data jobs: colours, a style sheet and a way to be written."""
