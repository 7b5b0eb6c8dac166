"""Generated patients with organs, prepared or as raw downloads, for demos and tests.

The abdomen follows the prepared CHAOS scans (row 0 posterior, liver at small columns, z grows to
the head; labels 1 liver, 2 right kidney, 3 left kidney, 4 spleen), the heart the prepared CMR scans
in short axis (labels 1 LV myocardium, 2 LV blood pool, 3 RV). Patients differ in size, in place,
shape and brightness of every tissue, in smooth deformation, noise and bias field.
"""

from fsmis.phantom.prepared import SIZE, generate, write_phantom

__all__ = ["SIZE", "generate", "write_phantom"]
