"""Single-object localisation + classification experiments on PASCAL VOC."""

import os

# albumentations asks the network for its newest version at import unless this is set beforehand.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
