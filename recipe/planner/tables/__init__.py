"""The planner in text: reports, tables of the docs, published runs."""
