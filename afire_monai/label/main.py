"""The file that MONAI Label looks for in an app's folder. ``scripts/label_server.sh`` copies it there."""

from afire_monai.label.app import RadiographLabelApp


class App(RadiographLabelApp):
    """The app; MONAI Label takes only classes that are defined in this file."""
