"""Tables and figures of a paper, from the runs that an experiment of ``conf/experiment`` plans."""
