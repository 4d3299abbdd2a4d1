"""A MONAI Label app for radiographs: models are used, corrected and trained on from a viewer.

Code that does not need MONAI Label (reading and writing of label maps, answers of models, choice of the next image,
training from saved labels) is in modules that do not import it. The modules that import it (`stores`, `app`, `server`)
are thin, and work only in the environment that ``scripts/label_server.sh`` makes.
"""

from __future__ import annotations
