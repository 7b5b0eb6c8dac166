"""Tables and figures of a paper, made from finished runs."""
